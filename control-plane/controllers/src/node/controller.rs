//! Carries out what a node's silence means, gives it its pod range, and removes pods of nodes that are gone.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::plan::{silenced, stays, taints, unready};
use super::ranges::Ranges;
use super::zones::{self, Pace, Turns};
use crate::cache::{Key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Node, Pod, condition};
use crate::write::{self, Delete, Writer};

/// A pod of a node that is gone may still stop by itself for this long.
const GONE_GRACE: Duration = Duration::from_secs(40);

/// Numbers of ranges, by node and in order.
#[derive(Default)]
struct Given {
    of: HashMap<String, u32>,
    used: BTreeSet<u32>,
}

impl Given {
    fn set(&mut self, node: &str, number: u32) {
        if let Some(before) = self.of.insert(node.to_owned(), number) {
            self.used.remove(&before);
        }
        self.used.insert(number);
    }

    fn remove(&mut self, node: &str) -> bool {
        self.of.remove(node).is_some_and(|number| self.used.remove(&number))
    }
}

/// Watches over nodes.
pub struct NodeController {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
    ranges: Option<Ranges>,
    grace: Duration,
    /// Ranges that nodes have or are about to have.
    given: Mutex<Given>,
    /// The last sign of life of each node, and when it was seen here: clocks of nodes are not trusted.
    signs: Mutex<HashMap<String, (String, Instant)>>,
    missing: Mutex<HashMap<String, Instant>>,
    /// Which zone may have a node cleared of its pods.
    turns: Mutex<Turns>,
}

impl NodeController {
    /// Registers its handlers. Without `ranges` nodes get no pod range. `grace` is how long a node may be silent.
    pub fn new(
        caches: Arc<Informers>,
        writer: Writer,
        events: Recorder,
        ranges: Option<Ranges>,
        grace: Duration,
    ) -> Arc<Self> {
        let this = Arc::new(Self {
            caches: caches.clone(),
            writer,
            events,
            queue: WorkQueue::new(),
            ranges,
            grace,
            given: Mutex::default(),
            signs: Mutex::default(),
            missing: Mutex::default(),
            turns: Mutex::default(),
        });
        let own = this.clone();
        caches.nodes.on_change(move |old, new| {
            let Some(node) = new.or(old) else { return };
            own.queue.add(key_of(node.as_ref()));
            let cidr = node.spec.pod_cidr.as_deref().unwrap_or_default();
            match own.ranges.and_then(|ranges| ranges.number(cidr)) {
                Some(number) if new.is_some() => own.given.lock().set(node.name(), number),
                _ if new.is_none() => drop(own.given.lock().remove(node.name())),
                _ => {}
            }
        });
        let own = this.clone();
        caches.leases.on_change(move |_, new| {
            // A renewal matters at once only if the node was thought silent.
            if let Some(lease) = new {
                own.sign(lease.name(), lease.spec.renew_time.as_deref().unwrap_or_default());
            }
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            if let Some(pod) = new
                && let Some(node) = pod.node()
                && old.is_none_or(|o| o.node() != Some(node))
                && own.caches.nodes.get(node).is_none_or(|n| !n.spec.taints.is_empty())
            {
                own.queue.add(node);
            }
        });
        this
    }

    fn sign(&self, node: &str, sign: &str) {
        let mut signs = self.signs.lock();
        if signs.get(node).is_none_or(|(last, _)| last != sign) {
            signs.insert(node.to_string(), (sign.to_string(), Instant::now()));
        }
    }

    // How long nothing was heard of a node: neither its lease nor its own status.
    fn silence(&self, node: &Node) -> Duration {
        let key = format!("status of {}", node.name());
        let beat = condition(&node.status.conditions, "Ready").filter(|c| c.status != "Unknown");
        let beat =
            beat.and_then(|c| c.last_heartbeat_time.as_ref()).map(|t| t.0.to_string()).unwrap_or_default();
        if !beat.is_empty() || !self.signs.lock().contains_key(&key) {
            self.sign(&key, &beat);
        }
        let signs = self.signs.lock();
        let age = |key: &str| signs.get(key).map(|(_, at)| at.elapsed());
        age(&key).into_iter().chain(age(node.name())).min().unwrap_or_default()
    }

    async fn give_range(&self, node: &Node) -> write::Result<()> {
        let (Some(ranges), true) =
            (self.ranges, node.spec.pod_cidr.as_deref().unwrap_or_default().is_empty())
        else {
            return Ok(());
        };
        let number = {
            let mut given = self.given.lock();
            let number = given.of.get(node.name()).copied().or_else(|| ranges.free(&given.used));
            number.into_iter().for_each(|number| given.set(node.name(), number));
            number
        };
        let Some(range) = number.map(|number| ranges.part(number)) else {
            self.events.warning(
                node,
                "CIDRNotAvailable",
                format!("Node {} status is now: CIDRNotAvailable", node.name()),
            );
            return Ok(());
        };
        let body =
            json!({ "metadata": { "uid": node.uid() }, "spec": { "podCIDR": range, "podCIDRs": [range] } });
        self.writer.strategic(&write::path::<Node>("", node.name()), &body).await.map(drop)
    }

    async fn judge(&self, node: &Node, now: Timestamp) -> write::Result<()> {
        if self.silence(node) >= self.grace {
            let conditions = silenced(node, now);
            if !conditions.is_empty() {
                let path = format!("{}/status", write::path::<Node>("", node.name()));
                let body =
                    json!({ "metadata": { "uid": node.uid() }, "status": { "conditions": conditions } });
                self.writer.strategic(&path, &body).await?;
                self.events.normal(
                    node,
                    "NodeNotReady",
                    format!("Node {} status is now: NodeNotReady", node.name()),
                );
            }
        }
        let zone = zones::zone_of(node);
        let mut may_evict = || {
            let pace = zones::paces(&self.caches.nodes.all()).get(&zone).copied();
            self.turns.lock().take(&zone, pace.unwrap_or(Pace::Stopped), Instant::now())
        };
        if let Some(taints) = taints(node, &mut may_evict, now) {
            let body = json!({
                "metadata": { "uid": node.uid(), "resourceVersion": node.metadata.resource_version },
                "spec": { "taints": taints },
            });
            self.writer.merge(&write::path::<Node>("", node.name()), &body).await?;
        }
        Ok(())
    }

    // Pods of a silent node are not ready, and those that do not tolerate its taints go when their time is up.
    async fn evict(&self, node: &Node, now: Timestamp) -> write::Result<Option<Duration>> {
        let unknown = condition(&node.status.conditions, "Ready").is_some_and(|c| c.status == "Unknown");
        if !unknown && !node.spec.taints.iter().any(|t| t.effect == "NoExecute") {
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for pod in self.caches.pods.by(&format!("node:{}", node.name())) {
            let path = write::path::<Pod>(pod.namespace(), pod.name());
            if let Some(body) = unready(&pod, now).filter(|_| unknown) {
                ignore_gone(self.writer.strategic(&format!("{path}/status"), &body).await)?;
            }
            match stays(&pod, &node.spec.taints, now) {
                _ if pod.is_terminating() => {}
                Some(Duration::ZERO) => {
                    self.events.normal(
                        pod.as_ref(),
                        "TaintManagerEviction",
                        format!("Marking for deletion Pod {}", key_of(pod.as_ref())),
                    );
                    self.writer.delete(&path, Delete { uid: Some(pod.uid()), ..Delete::default() }).await?;
                }
                Some(left) => next = Some(next.map_or(left, |n| n.min(left))),
                None => {}
            }
        }
        Ok(next)
    }

    // A node that is gone: after a pause its pods are removed at once, since nobody is left to stop them.
    async fn clean_up(&self, name: &str) -> write::Result<Option<Duration>> {
        self.signs.lock().remove(name);
        self.signs.lock().remove(&format!("status of {name}"));
        let pods = self.caches.pods.by(&format!("node:{name}"));
        if pods.is_empty() {
            self.missing.lock().remove(name);
            return Ok(None);
        }
        let since = *self.missing.lock().entry(name.to_string()).or_insert_with(Instant::now);
        if let Some(left) = GONE_GRACE.checked_sub(since.elapsed()).filter(|l| !l.is_zero()) {
            return Ok(Some(left));
        }
        match self.writer.get::<write::Written>(&write::path::<Node>("", name)).await {
            Err(error) if write::is_not_found(&error) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(Some(GONE_GRACE)),
        }
        for pod in pods {
            let how = Delete { uid: Some(pod.uid()), grace: Some(0), ..Delete::default() };
            self.writer.delete(&write::path::<Pod>(pod.namespace(), pod.name()), how).await?;
        }
        Ok(None)
    }
}

fn ignore_gone(answer: write::Result<write::Written>) -> write::Result<()> {
    match answer {
        Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}

#[async_trait]
impl Reconciler for NodeController {
    fn name(&self) -> &'static str {
        "node-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(node) = self.caches.nodes.get(key) else { return Ok(self.clean_up(key).await?) };
        self.missing.lock().remove(&**key);
        let now = Timestamp::now();
        self.give_range(&node).await?;
        self.judge(&node, now).await?;
        let next = self.evict(&node, now).await?;
        let look = (self.grace / 8).max(Duration::from_millis(100));
        Ok(Some(next.map_or(look, |n| n.clamp(Duration::from_millis(10), look))))
    }
}
