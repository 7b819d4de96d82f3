//! Zones of endpoints, and hints on which zone's or node's clients should use which endpoint. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::view::{Endpoint, Hints, Meta, Named, Node, Service, condition};

/// Label of a node that names its zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
const MODE: &str = "service.kubernetes.io/topology-mode";
/// More than this part of a zone's share may not be missing, as in Kubernetes.
const OVERLOAD: f64 = 0.2;

/// Where nodes are, and how much of the CPU each zone has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Zones {
    by_node: BTreeMap<String, String>,
    /// Each zone's part of all CPU; empty when a ready node has no zone.
    ratios: BTreeMap<String, f64>,
}

impl Zones {
    /// Reads the nodes.
    pub fn of_nodes(nodes: &[Arc<Node>]) -> Self {
        let zone = |node: &Node| node.label(ZONE).filter(|z| !z.is_empty()).map(String::from);
        let by_node = nodes.iter().filter_map(|n| Some((n.name().to_string(), zone(n)?))).collect();
        let mut cpu: BTreeMap<String, f64> = BTreeMap::new();
        let ready =
            |n: &&Arc<Node>| condition(&n.status.conditions, "Ready").is_some_and(|c| c.status == "True");
        for node in nodes.iter().filter(ready) {
            let Some(zone) = zone(node) else { return Self { by_node, ratios: BTreeMap::new() } };
            let has = node.status.allocatable.get("cpu");
            let has = has.and_then(|text| coracle_api::quantity::Quantity::parse(text).ok());
            *cpu.entry(zone).or_default() += has.map_or(0.0, |q| q.milli_value() as f64);
        }
        let all: f64 = cpu.values().sum();
        let ratios =
            if all > 0.0 { cpu.into_iter().map(|(z, c)| (z, c / all)).collect() } else { BTreeMap::new() };
        Self { by_node, ratios }
    }

    /// The zone of a node.
    pub fn of(&self, node: &str) -> Option<String> {
        self.by_node.get(node).cloned()
    }
}

/// Sets the hints that a Service asks for, by `trafficDistribution` or by its annotation.
pub fn hint(service: &Service, endpoints: &mut [Endpoint], zones: &Zones) {
    let mode = service.annotation(MODE).map(str::to_ascii_lowercase);
    match (service.spec.traffic_distribution.as_deref(), mode.as_deref()) {
        (_, Some("auto")) => automatic(endpoints, zones),
        (Some("PreferSameNode"), _) => {
            for one in endpoints.iter_mut() {
                let node = one.node_name.clone();
                let (zone, ready) = (one.zone.clone(), one.conditions.ready == Some(true));
                one.hints = node.filter(|_| ready).map(|node| Hints {
                    for_zones: zone.into_iter().map(|name| Named { name }).collect(),
                    for_nodes: vec![Named { name: node }],
                });
            }
        }
        (Some("PreferClose" | "PreferSameZone"), _) => {
            for one in endpoints.iter_mut().filter(|e| e.conditions.ready == Some(true)) {
                one.hints = one.zone.clone().map(Hints::zone);
            }
        }
        _ => {}
    }
}

// Each zone gets endpoints by its part of the CPU, its own first; no hints at all where that would overload one.
fn automatic(endpoints: &mut [Endpoint], zones: &Zones) {
    let mut ready: Vec<&mut Endpoint> =
        endpoints.iter_mut().filter(|e| e.conditions.ready == Some(true)).collect();
    let total = ready.len();
    if zones.ratios.len() < 2 || total < zones.ratios.len() || ready.iter().any(|e| e.zone.is_none()) {
        return;
    }
    let wants = |ratio: &f64| ratio * total as f64;
    let mut least: BTreeMap<&str, usize> = BTreeMap::new();
    for (zone, ratio) in &zones.ratios {
        least.insert(zone, (wants(ratio) / (1.0 + OVERLOAD)).ceil() as usize);
    }
    if least.values().sum::<usize>() > total {
        return;
    }
    let mut given: BTreeMap<String, usize> = BTreeMap::new();
    for one in &ready {
        *given.entry(one.zone.clone().unwrap_or_default()).or_default() += 1;
    }
    // What a zone has beyond its least goes to zones that have too little.
    let mut moved: Vec<(String, String)> = Vec::new();
    for (zone, wanted) in &least {
        while given.get(*zone).copied().unwrap_or(0) < *wanted {
            let spare = |(z, n): &(&String, &usize)| **n > least.get(z.as_str()).copied().unwrap_or(0);
            let Some(from) = given.iter().filter(spare).max_by_key(|(_, n)| **n).map(|(z, _)| z.clone())
            else {
                return;
            };
            given.entry(from.clone()).and_modify(|n| *n -= 1);
            *given.entry((*zone).to_string()).or_default() += 1;
            moved.push((from, (*zone).to_string()));
        }
    }
    ready.sort_by(|a, b| a.addresses.cmp(&b.addresses));
    for one in ready {
        let own = one.zone.clone().unwrap_or_default();
        let place = moved.iter().position(|(from, _)| *from == own);
        one.hints = Some(Hints::zone(place.map_or(own, |place| moved.remove(place).1)));
    }
}
