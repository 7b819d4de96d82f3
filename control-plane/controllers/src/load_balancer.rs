//! Services of type LoadBalancer: each gets an address of a pool; nodes make it answer.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::cache::{Key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Service};
use crate::write::{self, Writer};

/// An IPv4 range whose addresses are given out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool {
    first: u32,
    last: u32,
}

impl Pool {
    /// Reads a range such as `192.0.2.0/24`. Its first and last address stay free where there are more than two.
    pub fn parse(range: &str) -> Option<Self> {
        let (address, length) = range.split_once('/')?;
        let address = u32::from(address.parse::<Ipv4Addr>().ok()?);
        let length: u32 = length.parse().ok().filter(|l| (8..=32).contains(l))?;
        let hosts = u32::MAX.checked_shr(length).unwrap_or(0);
        let (first, last) = (address & !hosts, address | hosts);
        Some(if hosts > 1 { Self { first: first + 1, last: last - 1 } } else { Self { first, last } })
    }

    fn has(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address))
    }

    fn free(&self, used: &HashSet<Ipv4Addr>) -> Option<Ipv4Addr> {
        (self.first..=self.last).map(Ipv4Addr::from).find(|address| !used.contains(address))
    }
}

/// Gives addresses to Services.
pub struct LoadBalancers {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
    pool: Option<Pool>,
    /// Given lately: the cache may not show them yet.
    given: Mutex<Vec<(Key, Ipv4Addr)>>,
}

/// What a Service needs.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Give(Ipv4Addr),
    TakeBack,
    /// It asks for an address that it cannot have, or there is none left.
    Refuse(String),
}

fn step(service: &Service, pool: Pool, used: &HashSet<Ipv4Addr>) -> Step {
    let ours = service.spec.load_balancer_class.as_deref().is_none_or(|class| class == "coracle.dev/pool");
    let has: Vec<Ipv4Addr> = service.addresses();
    if service.spec.type_.as_deref() != Some("LoadBalancer") || service.is_terminating() {
        let given = has.iter().any(|address| pool.has(*address));
        return if given && !service.is_terminating() { Step::TakeBack } else { Step::Nothing };
    }
    let asked = service.spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty());
    let asked = asked.map(|text| text.parse::<Ipv4Addr>().map_err(|_| text.to_string()));
    match asked {
        _ if !ours => Step::Nothing,
        Some(Ok(address)) if has == [address] => Step::Nothing,
        Some(Ok(address)) if pool.has(address) && !used.contains(&address) => Step::Give(address),
        Some(Ok(address)) => Step::Refuse(format!("address {address} is taken or outside the pool")),
        Some(Err(text)) => Step::Refuse(format!("{text:?} is no IPv4 address")),
        None if !has.is_empty() => Step::Nothing,
        None => pool.free(used).map_or(Step::Refuse("the pool has no free address".to_string()), Step::Give),
    }
}

impl LoadBalancers {
    /// Registers its handlers. Without a pool nothing is given.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder, pool: Option<Pool>) -> Arc<Self> {
        let queue = WorkQueue::new();
        let this =
            Arc::new(Self { caches: caches.clone(), writer, events, queue, pool, given: Mutex::default() });
        let own = this.clone();
        caches.services.on_change(move |old, new| {
            if let Some(service) = new.filter(|_| own.pool.is_some()) {
                own.queue.add(key_of(service.as_ref()));
            }
            // An address became free: who waits for one may have it.
            if let (Some(old), None) = (old, new)
                && !old.addresses().is_empty()
            {
                own.given.lock().retain(|(key, _)| *key != key_of(old.as_ref()));
                let all = own.caches.services.all();
                let waiting = all
                    .iter()
                    .filter(|s| s.spec.type_.as_deref() == Some("LoadBalancer") && s.addresses().is_empty());
                waiting.for_each(|s| own.queue.add(key_of(s.as_ref())));
            }
        });
        this
    }

    async fn write(&self, service: &Service, ingress: Value) -> write::Result<()> {
        let path = format!("{}/status", write::path::<Service>(service.namespace(), service.name()));
        let body = json!({ "metadata": { "uid": service.uid() }, "status": { "loadBalancer": { "ingress": ingress } } });
        self.writer.merge(&path, &body).await.map(drop)
    }
}

#[async_trait]
impl Reconciler for LoadBalancers {
    fn name(&self) -> &'static str {
        "service-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    // No address is given twice.
    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let (Some(pool), Some(service)) = (self.pool, self.caches.services.get(key)) else { return Ok(None) };
        let others = self.caches.services.all();
        let mut used: HashSet<Ipv4Addr> =
            others.iter().filter(|s| key_of(s.as_ref()) != *key).flat_map(|s| s.addresses()).collect();
        used.extend(self.given.lock().iter().filter(|(of, _)| of != key).map(|(_, address)| *address));
        match step(&service, pool, &used) {
            Step::Nothing => {}
            Step::Give(address) => {
                self.given.lock().push((key.clone(), address));
                self.write(&service, json!([{ "ip": address.to_string(), "ipMode": "VIP" }])).await?;
                self.events.normal(service.as_ref(), "EnsuredLoadBalancer", "Ensured load balancer");
            }
            Step::TakeBack => {
                self.given.lock().retain(|(of, _)| of != key);
                self.write(&service, Value::Null).await?;
            }
            Step::Refuse(why) => {
                let words = format!("Error syncing load balancer: {why}");
                self.events.warning(service.as_ref(), "SyncLoadBalancerFailed", words);
                return Ok(Some(Duration::from_secs(60)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_from_the_pool() {
        let pool = Pool::parse("127.0.1.128/30").unwrap();
        let service = |spec: Value, status: Value| -> Service {
            serde_json::from_value(json!({ "metadata": {}, "spec": spec, "status": status })).unwrap()
        };
        let balanced = |more: Value| {
            let mut spec = json!({ "type": "LoadBalancer" });
            json_patch::merge(&mut spec, &more);
            service(spec, json!({}))
        };
        let at = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        let mut used = HashSet::new();
        assert_eq!(step(&balanced(json!({})), pool, &used), Step::Give(at("127.0.1.129")));
        used.insert(at("127.0.1.129"));
        assert_eq!(step(&balanced(json!({})), pool, &used), Step::Give(at("127.0.1.130")));
        let asked = json!({ "loadBalancerIP": "127.0.1.129" });
        assert!(matches!(step(&balanced(asked), pool, &used), Step::Refuse(_)));
        used.insert(at("127.0.1.130"));
        assert!(matches!(step(&balanced(json!({})), pool, &used), Step::Refuse(_)));
        assert_eq!(
            step(&balanced(json!({ "loadBalancerClass": "other" })), pool, &HashSet::new()),
            Step::Nothing
        );
        let given = json!({ "loadBalancer": { "ingress": [{ "ip": "127.0.1.129" }] } });
        assert_eq!(
            step(&service(json!({ "type": "ClusterIP" }), given.clone()), pool, &used),
            Step::TakeBack
        );
        assert_eq!(step(&service(json!({ "type": "LoadBalancer" }), given), pool, &used), Step::Nothing);
        assert!(Pool::parse("::/64").is_none() && Pool::parse("10.0.0.0").is_none());
    }
}
