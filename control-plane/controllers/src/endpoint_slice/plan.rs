//! From a Service, its pods and its slices to the writes that make the slices right. Pure.
//!
//! Slices keep their endpoints where they are: what changed is changed in place, what is new goes where there is room.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use super::topology::{self, Zones};
use crate::view::{
    Endpoint, EndpointConditions, EndpointPort, EndpointSlice, Meta, Pod, SERVICE_NAME_LABEL, Service,
    ServicePort, TargetRef, condition,
};

/// Label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// This controller, in [`MANAGED_BY`].
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
/// The most endpoints in a slice.
pub const MAX_ENDPOINTS: usize = 100;

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create this slice; the server makes its name.
    Create(Box<EndpointSlice>),
    /// Replace this slice.
    Update(Box<EndpointSlice>),
    /// Delete a slice: name and uid.
    Delete(String, String),
}

/// Endpoints with the same address family and ports share slices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub address_type: &'static str,
    pub ports: Vec<EndpointPort>,
}

/// What slices have of the object that they are made for.
pub struct Head {
    pub namespace: String,
    /// What their names begin with.
    pub prefix: String,
    pub owner: serde_json::Value,
    pub labels: BTreeMap<String, String>,
}

/// The writes for a Service. `pods` are those that its selector matches, `zones` the zones of nodes.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    zones: &Zones,
) -> Vec<Action> {
    let mut wanted: BTreeMap<Group, Vec<Endpoint>> = BTreeMap::new();
    for family in families(service) {
        for pod in pods {
            if let Some((group, mut endpoint)) = endpoint(service, pod, family) {
                endpoint.zone = endpoint.node_name.as_ref().and_then(|node| zones.of(node));
                wanted.entry(group).or_default().push(endpoint);
            }
        }
    }
    for endpoints in wanted.values_mut() {
        topology::hint(service, endpoints, zones);
    }
    if wanted.is_empty() {
        // One empty slice stays, so that "no endpoints" differs from "not looked at yet".
        let family = families(service).first().copied().unwrap_or("IPv4");
        wanted.insert(Group { address_type: family, ports: Vec::new() }, Vec::new());
    }
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME_LABEL.into(), service.name().into());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    }
    let head = Head {
        namespace: service.namespace().into(),
        prefix: format!("{}-", service.name()),
        owner: crate::ownership::controller_reference(service),
        labels,
    };
    writes(&head, wanted, slices)
}

/// The writes that make the slices hold these endpoints.
pub fn writes(
    head: &Head,
    wanted: BTreeMap<Group, Vec<Endpoint>>,
    slices: &[Arc<EndpointSlice>],
) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut slices: Vec<&Arc<EndpointSlice>> = slices.iter().filter(|s| !s.is_terminating()).collect();
    slices.sort_by(|a, b| a.name().cmp(b.name()));
    let mut unused: Vec<&Arc<EndpointSlice>> = Vec::new();
    let mut by_group: HashMap<usize, Vec<&Arc<EndpointSlice>>> = HashMap::new();
    for slice in slices {
        match wanted
            .keys()
            .position(|g| g.address_type == slice.address_type && same_ports(&g.ports, &slice.ports))
        {
            Some(place) => by_group.entry(place).or_default().push(slice),
            None => unused.push(slice),
        }
    }
    for (place, (group, endpoints)) in wanted.into_iter().enumerate() {
        let there = by_group.remove(&place).unwrap_or_default();
        fill(head, &group, endpoints, &there, &mut unused, &mut actions);
    }
    actions.extend(unused.into_iter().map(|s| Action::Delete(s.name().into(), s.uid().into())));
    actions
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    let sorted = |ports: &[EndpointPort]| {
        let mut ports: Vec<EndpointPort> = ports.to_vec();
        for port in &mut ports {
            port.name.get_or_insert_default();
        }
        ports.sort();
        ports
    };
    sorted(a) == sorted(b)
}

// Distributes a group's endpoints over its slices.
fn fill<'a>(
    head: &Head,
    group: &Group,
    endpoints: Vec<Endpoint>,
    there: &[&'a Arc<EndpointSlice>],
    unused: &mut Vec<&'a Arc<EndpointSlice>>,
    actions: &mut Vec<Action>,
) {
    let is_empty = endpoints.is_empty();
    let identity = |e: &Endpoint| {
        (e.target_ref.as_ref().map(|t| t.uid.clone()).unwrap_or_default(), e.addresses.clone())
    };
    let mut left: BTreeMap<_, Endpoint> = endpoints.into_iter().map(|e| (identity(&e), e)).collect();
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in there {
        kept.push((slice, slice.endpoints.iter().filter_map(|e| left.remove(&identity(e))).collect()));
    }
    let mut new: std::collections::VecDeque<Endpoint> = left.into_values().collect();
    // First into slices that must be written anyway, then into any with room.
    for touched in [true, false] {
        for (slice, endpoints) in &mut kept {
            while (*endpoints != slice.endpoints) == touched && endpoints.len() < MAX_ENDPOINTS {
                let Some(endpoint) = new.pop_front() else { break };
                endpoints.push(endpoint);
                if !touched {
                    let room = MAX_ENDPOINTS - endpoints.len();
                    endpoints.extend(new.drain(..room.min(new.len())));
                    break;
                }
            }
        }
    }
    let mut empty_kept = is_empty && kept.is_empty();
    for (place, (slice, endpoints)) in kept.into_iter().enumerate() {
        if endpoints.is_empty() && !(is_empty && place == 0) {
            actions.push(Action::Delete(slice.name().into(), slice.uid().into()));
            continue;
        }
        let next = slice_of(head, group, endpoints, Some(slice));
        if differs(slice, &next) {
            actions.push(Action::Update(Box::new(next)));
        }
    }
    while !new.is_empty() || std::mem::take(&mut empty_kept) {
        let chunk: Vec<Endpoint> = new.drain(..new.len().min(MAX_ENDPOINTS)).collect();
        // A slice of other ports that nobody needs is changed rather than deleted, as its address type stays.
        let reused =
            unused.iter().position(|s| s.address_type == group.address_type).map(|i| unused.remove(i));
        let next = slice_of(head, group, chunk, reused);
        actions.push(if reused.is_some() {
            Action::Update(Box::new(next))
        } else {
            Action::Create(Box::new(next))
        });
    }
}

fn differs(old: &EndpointSlice, new: &EndpointSlice) -> bool {
    old.endpoints != new.endpoints
        || !same_ports(&old.ports, &new.ports)
        || old.metadata.labels != new.metadata.labels
}

fn slice_of(
    head: &Head,
    group: &Group,
    endpoints: Vec<Endpoint>,
    old: Option<&Arc<EndpointSlice>>,
) -> EndpointSlice {
    let mut metadata = old.map(|old| old.metadata.clone()).unwrap_or_else(|| kube::core::ObjectMeta {
        generate_name: Some(head.prefix.clone()),
        namespace: Some(head.namespace.clone()),
        owner_references: serde_json::from_value(json!([head.owner])).ok(),
        ..Default::default()
    });
    metadata.labels = Some(head.labels.clone());
    EndpointSlice { metadata, address_type: group.address_type.into(), endpoints, ports: group.ports.clone() }
}

fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip.as_deref() == Some("None")
}

fn families(service: &Service) -> Vec<&'static str> {
    let families: Vec<_> =
        service.spec.ip_families.iter().map(|f| if f == "IPv6" { "IPv6" } else { "IPv4" }).collect();
    if families.is_empty() { vec!["IPv4"] } else { families }
}

// A pod's place behind the Service; None when it has no address yet or is over.
fn endpoint(service: &Service, pod: &Pod, family: &'static str) -> Option<(Group, Endpoint)> {
    if pod.is_finished() {
        return None;
    }
    let listed = pod.status.pod_ips.iter().map(|ip| ip.ip.as_str());
    let mut addresses = listed.chain(pod.status.pod_ip.as_deref());
    let address = addresses
        .find(|a| matches!((a.parse(), family), (Ok(IpAddr::V4(_)), "IPv4") | (Ok(IpAddr::V6(_)), "IPv6")))?;
    let serving = condition(&pod.status.conditions, "Ready").is_some_and(|c| c.status == "True");
    let terminating = pod.is_terminating();
    let ready = service.spec.publish_not_ready_addresses || (serving && !terminating);
    let hostname =
        pod.spec.hostname.clone().filter(|_| pod.spec.subdomain.as_deref() == Some(service.name()));
    let endpoint = Endpoint {
        addresses: vec![address.into()],
        conditions: EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        },
        hostname: hostname.filter(|h| !h.is_empty()),
        node_name: pod.node().map(String::from),
        target_ref: Some(TargetRef {
            kind: "Pod".into(),
            namespace: pod.namespace().into(),
            name: pod.name().into(),
            uid: pod.uid().into(),
        }),
        zone: None,
        hints: None,
    };
    let mut ports: Vec<EndpointPort> = service.spec.ports.iter().filter_map(|p| resolve(p, pod)).collect();
    ports.sort();
    Some((Group { address_type: family, ports }, endpoint))
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(name)) => {
            let sidecars =
                pod.spec.init_containers.iter().filter(|c| c.restart_policy.as_deref() == Some("Always"));
            let mut ports = pod.spec.containers.iter().chain(sidecars).flat_map(|c| &c.ports);
            let named = ports.find(|p| {
                p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol
            })?;
            named.container_port
        }
    };
    Some(EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        protocol: Some(protocol.into()),
        port: Some(number),
        app_protocol: port.app_protocol.clone(),
    })
}
