//! Endpoints that somebody keeps by hand, for a Service without a selector, as slices: those are what proxies read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::controller::act;
use super::plan::{Action, Group, Head, MANAGED_BY, writes};
use crate::cache::{Key, key, key_of};
use crate::informers::Informers;
use crate::ownership::controller_reference;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{
    Endpoint, EndpointConditions, EndpointSlice, Endpoints, Meta, SERVICE_NAME_LABEL, Service,
};
use crate::write::Writer;

/// This controller, in the label that says who writes a slice.
pub const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// The most addresses that are mirrored of a subset.
const MAX_ADDRESSES: usize = 1000;

/// Mirrors Endpoints.
pub struct EndpointMirror {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

impl EndpointMirror {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.endpoints.on_change(move |old, new| {
            new.or(old).into_iter().for_each(|one| own.queue.add(key_of(one.as_ref())));
        });
        let own = this.clone();
        caches.services.on_change(move |old, new| {
            new.or(old).into_iter().for_each(|one| own.queue.add(key_of(one.as_ref())));
        });
        let own = this.clone();
        caches.slices.on_change(move |old, new| {
            if let Some(slice) = new.or(old).filter(|s| s.label(MANAGED_BY) == Some(MIRROR))
                && let Some(service) = slice.label(SERVICE_NAME_LABEL)
            {
                own.queue.add(key(slice.namespace(), service));
            }
        });
        this
    }
}

/// Whether Endpoints are somebody's own: those of a Service with a selector are made from slices.
fn is_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let selects = service.spec.selector.as_ref().is_some_and(|s| !s.is_empty());
    !selects && endpoints.label(SKIP) != Some("true") && endpoints.annotation(LEADER).is_none()
}

/// The writes that make slices of Endpoints.
fn plan(endpoints: &Endpoints, slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for subset in &endpoints.subsets {
        let ports = subset.get("ports").cloned().unwrap_or_default();
        let mut ports: Vec<crate::view::EndpointPort> = serde_json::from_value(ports).unwrap_or_default();
        for port in &mut ports {
            port.name.get_or_insert_default();
        }
        ports.sort();
        let lists = [("addresses", true), ("notReadyAddresses", false)];
        let all = lists.iter().flat_map(|(list, ready)| {
            let addresses = subset.get(list).and_then(Value::as_array).into_iter().flatten();
            addresses.map(move |address| (address, *ready))
        });
        for (address, ready) in all.take(MAX_ADDRESSES) {
            let Some((family, endpoint)) = mirrored(address, ready) else { continue };
            let group = Group { address_type: family, ports: ports.clone() };
            wanted.entry(group).or_default().push(endpoint);
        }
    }
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME_LABEL.into(), endpoints.name().into());
    labels.insert(MANAGED_BY.into(), MIRROR.into());
    let head = Head {
        namespace: endpoints.namespace().into(),
        prefix: format!("{}-", endpoints.name()),
        owner: controller_reference(endpoints),
        labels,
    };
    writes(&head, wanted, slices)
}

fn mirrored(address: &Value, ready: bool) -> Option<(&'static str, Endpoint)> {
    let ip = address.get("ip")?.as_str()?;
    let family = match ip.parse().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    let text = |field: &str| address.get(field).and_then(Value::as_str).map(String::from);
    let target = address.get("targetRef").cloned();
    let endpoint = Endpoint {
        addresses: vec![ip.to_string()],
        conditions: EndpointConditions { ready: Some(ready), ..EndpointConditions::default() },
        hostname: text("hostname"),
        node_name: text("nodeName"),
        target_ref: target.and_then(|target| serde_json::from_value(target).ok()),
        ..Endpoint::default()
    };
    Some((family, endpoint))
}

#[async_trait]
impl Reconciler for EndpointMirror {
    fn name(&self) -> &'static str {
        "endpointslicemirroring-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let mut slices = self.caches.slices.by(&format!("service:{key}"));
        slices.retain(|s| s.label(MANAGED_BY) == Some(MIRROR));
        let (service, endpoints) = (self.caches.services.get(key), self.caches.endpoints.get(key));
        let both = service.zip(endpoints).filter(|(s, e)| !s.is_terminating() && is_mirrored(s, e));
        let actions = match &both {
            Some((_, endpoints)) => plan(endpoints, &slices),
            None => slices.iter().map(|s| Action::Delete(s.name().into(), s.uid().into())).collect(),
        };
        let (namespace, _) = crate::cache::split(key);
        for action in actions {
            act(&self.caches, &self.writer, namespace, action).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_kept_by_hand_become_slices() {
        let endpoints = |change: Value| -> Endpoints {
            let mut endpoints = json!({ "metadata": { "name": "db", "namespace": "default", "uid": "e" }, "subsets": [
                { "addresses": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8::1" }], "notReadyAddresses": [{ "ip": "192.0.2.2" }],
                  "ports": [{ "port": 5432, "protocol": "TCP" }] },
            ] });
            json_patch::merge(&mut endpoints, &change);
            serde_json::from_value(endpoints).unwrap()
        };
        let made: Vec<EndpointSlice> = plan(&endpoints(json!({})), &[])
            .into_iter()
            .map(|action| match action {
                Action::Create(slice) => *slice,
                other => panic!("{other:?}"),
            })
            .collect();
        let types: Vec<_> = made.iter().map(|s| (s.address_type.as_str(), s.endpoints.len())).collect();
        assert_eq!(types, [("IPv4", 2), ("IPv6", 1)]);
        let ready: Vec<_> = made[0].endpoints.iter().map(|e| e.conditions.ready).collect();
        assert_eq!((ready, made[0].label(MANAGED_BY)), (vec![Some(true), Some(false)], Some(MIRROR)));
        assert_eq!(made[0].ports[0].port, Some(5432));
        let there: Vec<Arc<EndpointSlice>> = made
            .into_iter()
            .enumerate()
            .map(|(i, mut slice)| {
                slice.metadata.name = Some(format!("db-{i}"));
                Arc::new(slice)
            })
            .collect();
        assert_eq!(plan(&endpoints(json!({})), &there), [], "nothing is written twice");
        assert_eq!(plan(&endpoints(json!({ "subsets": [] })), &there).len(), 2, "none are left of none");
        let service = |spec: Value| serde_json::from_value(json!({ "metadata": {}, "spec": spec })).unwrap();
        assert!(is_mirrored(&service(json!({})), &endpoints(json!({}))));
        assert!(!is_mirrored(&service(json!({ "selector": { "a": "b" } })), &endpoints(json!({}))));
        let skipped = json!({ "metadata": { "labels": { SKIP: "true" } } });
        assert!(!is_mirrored(&service(json!({})), &endpoints(skipped)));
    }
}
