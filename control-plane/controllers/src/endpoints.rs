//! Endpoints: the older form of EndpointSlices, one object a Service, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::cache::{Key, key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{EndpointSlice, Endpoints, Meta, SERVICE_NAME_LABEL, Service};
use crate::write::{self, Writer};

/// The most addresses in an Endpoints object.
const MAX_ADDRESSES: usize = 1000;
const OVER: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

/// Keeps an Endpoints object for each Service with a selector, from its slices.
pub struct EndpointsController {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

impl EndpointsController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.services.on_change(move |old, new| {
            if let Some(service) = new.or(old) {
                own.queue.add(key_of(service.as_ref()));
            }
        });
        let own = this.clone();
        caches.slices.on_change(move |old, new| {
            if let Some(slice) = new.or(old)
                && let Some(service) = slice.label(SERVICE_NAME_LABEL)
            {
                own.queue.add(key(slice.namespace(), service));
            }
        });
        this
    }
}

/// The subsets: addresses by their ports, and whether some were left out.
fn subsets(slices: &[Arc<EndpointSlice>]) -> (Vec<Value>, bool) {
    let mut sets: BTreeMap<String, (Value, Vec<Value>, Vec<Value>)> = BTreeMap::new();
    let (mut count, mut over) = (0, false);
    for slice in slices.iter().filter(|s| s.address_type == "IPv4" || s.address_type == "IPv6") {
        let port = |p: &crate::view::EndpointPort| {
            let mut port = json!({ "port": p.port, "protocol": p.protocol.as_deref().unwrap_or("TCP") });
            if let Some(name) = p.name.as_deref().filter(|n| !n.is_empty()) {
                port["name"] = name.into();
            }
            port
        };
        let ports: Value = slice.ports.iter().map(port).collect();
        let set = sets.entry(ports.to_string()).or_insert_with(|| (ports, Vec::new(), Vec::new()));
        for endpoint in &slice.endpoints {
            let Some(address) = endpoint.addresses.first() else { continue };
            count += 1;
            if count > MAX_ADDRESSES {
                over = true;
                break;
            }
            let mut entry = json!({ "ip": address });
            if let Some(hostname) = &endpoint.hostname {
                entry["hostname"] = hostname.as_str().into();
            }
            if let Some(node) = &endpoint.node_name {
                entry["nodeName"] = node.as_str().into();
            }
            if let Some(target) = &endpoint.target_ref {
                entry["targetRef"] = json!(target);
            }
            let ready = endpoint.conditions.ready != Some(false);
            if endpoint.conditions.terminating == Some(true) && !ready {
                continue;
            }
            if ready { set.1.push(entry) } else { set.2.push(entry) }
        }
    }
    let of = |(ports, mut ready, mut not): (Value, Vec<Value>, Vec<Value>)| {
        for list in [&mut ready, &mut not] {
            list.sort_by_key(|entry| entry["ip"].to_string());
        }
        let mut subset = json!({});
        for (field, list) in [("addresses", ready), ("notReadyAddresses", not)] {
            if !list.is_empty() {
                subset[field] = list.into();
            }
        }
        let empty = subset.as_object().is_none_or(serde_json::Map::is_empty);
        if ports.as_array().is_some_and(|p| !p.is_empty()) {
            subset["ports"] = ports;
        }
        (!empty).then_some(subset)
    };
    (sets.into_values().filter_map(of).collect(), over)
}

fn wanted(service: &Service, slices: &[Arc<EndpointSlice>]) -> Value {
    let (subsets, over) = subsets(slices);
    let mut labels = json!(service.metadata.labels.clone().unwrap_or_default());
    labels[MANAGED] = MANAGER.into();
    if service.spec.cluster_ip.as_deref() == Some("None") {
        labels["service.kubernetes.io/headless"] = "".into();
    }
    let annotations = if over { json!({ OVER: "truncated" }) } else { json!({ OVER: null }) };
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": service.name(), "namespace": service.namespace(), "labels": labels, "annotations": annotations },
        "subsets": subsets,
    })
}

#[async_trait]
impl Reconciler for EndpointsController {
    fn name(&self) -> &'static str {
        "endpoint-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let there = self.caches.endpoints.get(key);
        let Some(service) = self.caches.services.get(key).filter(|s| !s.is_terminating()) else {
            // Endpoints that are ours go with their Service; others are somebody's own.
            if let Some(there) = there.filter(|e| e.label(MANAGED) == Some(MANAGER)) {
                let path = write::path::<Endpoints>(there.namespace(), there.name());
                let how = write::Delete { uid: Some(there.uid()), ..write::Delete::default() };
                self.writer.delete(&path, how).await?;
            }
            return Ok(None);
        };
        if service.spec.selector.as_ref().is_none_or(|s| s.is_empty())
            || service.spec.type_.as_deref() == Some("ExternalName")
        {
            return Ok(None);
        }
        let slices = self.caches.slices.by(&format!("service:{key}"));
        let body = wanted(&service, &slices);
        let same = there.as_ref().is_some_and(|e| {
            let labels = json!(e.metadata.labels.clone().unwrap_or_default());
            json!(e.subsets) == body["subsets"] && labels == body["metadata"]["labels"]
        });
        if same {
            return Ok(None);
        }
        let answer = match &there {
            Some(_) => {
                let path = write::path::<Endpoints>(service.namespace(), service.name());
                self.writer.merge(&path, &body).await
            }
            None => self.writer.create(&write::path::<Endpoints>(service.namespace(), ""), &body).await,
        };
        match answer {
            Err(error) if write::is_namespace_terminating(&error) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_with_the_same_ports_are_one_subset() {
        let slice = |endpoints: Value, port: i32| -> Arc<EndpointSlice> {
            Arc::new(serde_json::from_value(json!({
                "metadata": {}, "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "http", "port": port, "protocol": "TCP" }],
            })).unwrap())
        };
        let one = |ip: &str, ready: bool| json!({ "addresses": [ip], "conditions": { "ready": ready } });
        let slices = [
            slice(json!([one("10.0.0.2", true), one("10.0.0.1", true)]), 80),
            slice(json!([one("10.0.0.3", false)]), 80),
            slice(json!([one("10.0.0.4", true)]), 81),
            slice(json!([]), 82),
        ];
        let (subsets, over) = subsets(&slices);
        let port = |n: i32| json!([{ "name": "http", "port": n, "protocol": "TCP" }]);
        let wanted = json!([
            { "addresses": [{ "ip": "10.0.0.1" }, { "ip": "10.0.0.2" }], "notReadyAddresses": [{ "ip": "10.0.0.3" }], "ports": port(80) },
            { "addresses": [{ "ip": "10.0.0.4" }], "ports": port(81) },
        ]);
        assert_eq!((json!(subsets), over), (wanted, false));
    }
}
