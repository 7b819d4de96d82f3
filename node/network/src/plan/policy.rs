//! NetworkPolicies with their selectors resolved to the addresses of pods.

use std::collections::{BTreeMap, BTreeSet};

use coracle_cri_api::network as feed;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Objects, Settings, protocol};

/// Resolved ports (protocol, first, last): a named port may mean another number in each pod.
type PortKey = Vec<(i32, u32, u32)>;

/// The policies that select pods of this node, for the runtime to keep.
pub fn policies(objects: &Objects<'_>, settings: &Settings) -> Vec<feed::Policy> {
    let world = World::new(objects);
    let mut ordered: Vec<&NetworkPolicy> = objects.policies.clone();
    ordered.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    ordered.into_iter().flat_map(|policy| resolve(policy, &world, settings)).collect()
}

struct World<'a> {
    /// Pods that have an address of their own, and run.
    pods: Vec<&'a Pod>,
    namespaces: BTreeMap<&'a str, &'a Namespace>,
}

impl<'a> World<'a> {
    fn new(objects: &Objects<'a>) -> Self {
        let mut pods: Vec<&Pod> = objects.pods.iter().copied().filter(|pod| address(pod).is_some()).collect();
        pods.sort_by(|a, b| {
            (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
        });
        let named = |n: &&'a Namespace| n.metadata.name.as_deref().map(|name| (name, *n));
        Self { pods, namespaces: objects.namespaces.iter().filter_map(named).collect() }
    }

    fn pods_of(&self, namespace: &str, selector: &LabelSelector) -> impl Iterator<Item = &'a Pod> {
        let found = self.pods.iter().copied().filter(move |pod| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && selects(selector, pod.metadata.labels.as_ref())
        });
        found.collect::<Vec<_>>().into_iter()
    }

    /// The pods that a peer means, as seen from a policy's namespace.
    fn peers(&self, namespace: &str, peer: &NetworkPolicyPeer) -> Vec<&'a Pod> {
        if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
            return Vec::new();
        }
        let any = LabelSelector::default();
        let pods = peer.pod_selector.as_ref().unwrap_or(&any);
        let Some(selector) = &peer.namespace_selector else {
            return self.pods_of(namespace, pods).collect();
        };
        let namespaces =
            self.namespaces.iter().filter(|(_, object)| selects(selector, object.metadata.labels.as_ref()));
        namespaces.flat_map(|(name, _)| self.pods_of(name, pods)).collect()
    }
}

/// The address of a pod that policies are about: one of its own, in use.
fn address(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let host = pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false);
    status.pod_ip.as_deref().filter(|ip| !ip.is_empty() && !over && !host)
}

fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let get = |key: &str| labels.and_then(|l| l.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    let meets = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement| {
        let values = r.values.as_deref().unwrap_or_default();
        match (r.operator.as_str(), get(&r.key)) {
            ("In", Some(value)) => values.contains(value),
            ("NotIn", value) => value.is_none_or(|value| !values.contains(value)),
            ("Exists", value) => value.is_some(),
            ("DoesNotExist", value) => value.is_none(),
            _ => false,
        }
    };
    equal && selector.match_expressions.iter().flatten().all(meets)
}

fn resolve(policy: &NetworkPolicy, world: &World<'_>, settings: &Settings) -> Vec<feed::Policy> {
    let (Some(spec), Some(namespace)) = (&policy.spec, policy.metadata.namespace.as_deref()) else {
        return Vec::new();
    };
    let any = LabelSelector::default();
    let here = |pod: &&Pod| {
        pod.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(settings.node_name.as_str())
    };
    let selected = world.pods_of(namespace, spec.pod_selector.as_ref().unwrap_or(&any));
    let here: Vec<&Pod> = selected.filter(here).collect();
    if here.is_empty() {
        return Vec::new();
    }
    let (ingress, egress) = directions(spec);
    let named = |pods: &[&Pod]| feed::Policy {
        name: format!("{namespace}/{}", policy.metadata.name.as_deref().unwrap_or_default()),
        pods: pods.iter().filter_map(|pod| address(pod)).map(str::to_owned).collect(),
        ..Default::default()
    };
    let mut resolved = Vec::new();
    if egress {
        let rules = spec.egress.iter().flatten();
        let rules =
            rules.flat_map(|rule| outgoing(world, namespace, rule.to.as_deref(), rule.ports.as_deref()));
        resolved.push(feed::Policy { egress: true, egress_rules: rules.collect(), ..named(&here) });
    }
    if ingress {
        for (rules, pods) in received(spec, world, namespace, &here, settings) {
            resolved.push(feed::Policy { ingress: true, ingress_rules: rules, ..named(&pods) });
        }
    }
    resolved
}

/// What these pods may receive. A named port is the selected pod's: pods in which it means the same share rules.
fn received<'a>(
    spec: &NetworkPolicySpec,
    world: &World<'_>,
    namespace: &str,
    pods: &[&'a Pod],
    settings: &Settings,
) -> Vec<(Vec<feed::Rule>, Vec<&'a Pod>)> {
    let mut groups: BTreeMap<Vec<PortKey>, (Vec<feed::Rule>, Vec<&Pod>)> = BTreeMap::new();
    for pod in pods {
        let rules = spec.ingress.iter().flatten();
        let rules =
            rules.map(|rule| incoming(world, namespace, rule.from.as_deref(), rule.ports.as_deref(), pod));
        let rules: Vec<feed::Rule> = rules.chain([from_node(settings)]).collect();
        let key = rules.iter().map(|rule| port_key(&rule.ports)).collect();
        groups.entry(key).or_insert_with(|| (rules, Vec::new())).1.push(pod);
    }
    groups.into_values().collect()
}

fn port_key(ports: &[feed::PolicyPort]) -> PortKey {
    ports.iter().map(|p| (p.protocol, p.first, p.last)).collect()
}

/// The API's default: a policy speaks of ingress, and of egress if it has such rules.
fn directions(spec: &NetworkPolicySpec) -> (bool, bool) {
    match &spec.policy_types {
        Some(types) if !types.is_empty() => {
            let has = |name: &str| types.iter().any(|t| t == name);
            (has("Ingress"), has("Egress"))
        }
        _ => (true, spec.egress.as_ref().is_some_and(|rules| !rules.is_empty())),
    }
}

/// A node always reaches its pods: probes come from there.
fn from_node(settings: &Settings) -> feed::Rule {
    let block = |cidr: String| feed::IpBlock { cidr, except: Vec::new() };
    feed::Rule {
        peers: vec![block(format!("{}/32", settings.node_ip)), block("127.0.0.0/16".into())],
        any_port: true,
        ..Default::default()
    }
}

fn incoming(
    world: &World<'_>,
    namespace: &str,
    from: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
    pod: &Pod,
) -> feed::Rule {
    let (any_port, ports) = all_ports(ports, Some(pod));
    let (any_peer, peers) = match from {
        Some(peers) if !peers.is_empty() => {
            let pods = peers.iter().flat_map(|peer| world.peers(namespace, peer));
            (false, unique(pods).into_iter().chain(blocks(peers)).collect())
        }
        _ => (true, Vec::new()),
    };
    feed::Rule { any_peer, peers, any_port, ports }
}

fn outgoing(
    world: &World<'_>,
    namespace: &str,
    to: Option<&[NetworkPolicyPeer]>,
    ports: Option<&[NetworkPolicyPort]>,
) -> Vec<feed::Rule> {
    let named = |p: &NetworkPolicyPort| matches!(p.port, Some(IntOrString::String(_)));
    let has_named = ports.is_some_and(|ports| ports.iter().any(named));
    let peers = to.filter(|peers| !peers.is_empty());
    let (any_port, numbers) = all_ports(ports, None);
    let mut rules = Vec::new();
    if any_port || !numbers.is_empty() {
        let blocks = peers.map(|peers| {
            let pods = peers.iter().flat_map(|peer| world.peers(namespace, peer));
            unique(pods).into_iter().chain(blocks(peers)).collect::<Vec<_>>()
        });
        rules.push(feed::Rule {
            any_peer: blocks.is_none(),
            peers: blocks.unwrap_or_default(),
            any_port,
            ports: numbers,
        });
    }
    if has_named {
        // A named port is the peer's: peers in which it means the same share a rule.
        let anyone: Vec<&Pod> = match peers {
            Some(peers) => peers.iter().flat_map(|peer| world.peers(namespace, peer)).collect(),
            None => world.pods.clone(),
        };
        let mut groups: BTreeMap<PortKey, Vec<&Pod>> = BTreeMap::new();
        for pod in anyone {
            let (_, numbers) = all_ports(ports, Some(pod));
            groups.entry(port_key(&numbers)).or_default().push(pod);
        }
        for (ports, pods) in groups.into_iter().filter(|(ports, _)| !ports.is_empty()) {
            let port = |(protocol, first, last)| feed::PolicyPort { protocol, first, last };
            rules.push(feed::Rule {
                peers: unique(pods.into_iter()),
                ports: ports.into_iter().map(port).collect(),
                ..Default::default()
            });
        }
    }
    rules
}

fn unique<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<feed::IpBlock> {
    let addresses: BTreeSet<&str> = pods.filter_map(address).collect();
    addresses.into_iter().map(|ip| feed::IpBlock { cidr: format!("{ip}/32"), except: Vec::new() }).collect()
}

fn blocks(peers: &[NetworkPolicyPeer]) -> impl Iterator<Item = feed::IpBlock> {
    peers.iter().filter_map(|peer| peer.ip_block.as_ref()).map(|block| feed::IpBlock {
        cidr: block.cidr.clone(),
        except: block.except.clone().unwrap_or_default(),
    })
}

/// Whether every port is meant, and else which; named ones are looked up in `pod`, and left out without one.
fn all_ports(ports: Option<&[NetworkPolicyPort]>, pod: Option<&Pod>) -> (bool, Vec<feed::PolicyPort>) {
    let Some(ports) = ports.filter(|ports| !ports.is_empty()) else { return (true, Vec::new()) };
    (false, ports.iter().filter_map(|port| one_port(port, pod)).collect())
}

fn one_port(port: &NetworkPolicyPort, pod: Option<&Pod>) -> Option<feed::PolicyPort> {
    let wanted = port.protocol.as_deref().unwrap_or("TCP");
    let protocol = protocol(Some(wanted))?.into();
    let number = |n: i32| u16::try_from(n).ok().map(u32::from);
    let first = match &port.port {
        None => return Some(feed::PolicyPort { protocol, first: 0, last: 0 }),
        Some(IntOrString::Int(n)) => number(*n)?,
        Some(IntOrString::String(name)) => {
            let containers = pod?.spec.iter().flat_map(|s| s.containers.iter());
            let mut declared = containers.flat_map(|c| c.ports.iter().flatten());
            let found = declared.find(|p| {
                p.name.as_deref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == wanted
            })?;
            number(found.container_port)?
        }
    };
    Some(feed::PolicyPort { protocol, first, last: port.end_port.and_then(number).unwrap_or(first) })
}
