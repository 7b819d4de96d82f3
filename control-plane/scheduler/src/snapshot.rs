//! The nodes and what is on them, pods included whose binding is still on its way.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use coracle_controllers::cache::{Key, key_of};
use coracle_controllers::view::{Meta, Node, Pod};

use crate::demand::{Amounts, Demand, HostPort};

/// A node and what it has given away.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// The node; None while only its pods are known.
    pub node: Option<Arc<Node>>,
    /// What pods may use.
    pub allocatable: Amounts,
    /// What its pods request.
    pub requested: Amounts,
    /// How many pods it has.
    pub pods: usize,
    /// Host ports taken.
    pub ports: Vec<HostPort>,
    /// Pods by the uid of their controller.
    pub by_owner: HashMap<String, usize>,
}

impl NodeInfo {
    fn empty() -> Self {
        Self {
            node: None,
            allocatable: Amounts::default(),
            requested: Amounts::default(),
            pods: 0,
            ports: Vec::new(),
            by_owner: HashMap::new(),
        }
    }

    fn add(&mut self, demand: &Demand) {
        self.requested.add(&demand.requests);
        self.pods += 1;
        self.ports.extend(demand.ports.iter().cloned());
        *self.by_owner.entry(demand.owner.clone()).or_default() += 1;
    }

    fn remove(&mut self, demand: &Demand) {
        self.requested.subtract(&demand.requests);
        self.pods = self.pods.saturating_sub(1);
        for port in &demand.ports {
            if let Some(place) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(place);
            }
        }
        if let Some(count) = self.by_owner.get_mut(&demand.owner) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_owner.remove(&demand.owner);
            }
        }
    }
}

struct Placed {
    node: String,
    demand: Demand,
}

/// All nodes, and all pods that are on one.
#[derive(Default)]
pub struct Snapshot {
    nodes: BTreeMap<String, NodeInfo>,
    placed: HashMap<Key, Placed>,
}

impl Snapshot {
    /// The nodes that exist, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &NodeInfo)> {
        self.nodes.iter().filter(|(_, info)| info.node.is_some()).map(|(name, info)| (name.as_str(), info))
    }

    /// A node is new or changed.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let info = self.nodes.entry(node.name().to_string()).or_insert_with(NodeInfo::empty);
        let amounts = if node.status.allocatable.is_empty() { &node.status.capacity } else { &node.status.allocatable };
        info.allocatable = Amounts::read(amounts);
        info.node = Some(node);
    }

    /// A node is gone. Its pods are counted until they go too.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(info) = self.nodes.get_mut(name) {
            info.node = None;
            if info.pods == 0 {
                self.nodes.remove(name);
            }
        }
    }

    /// A pod is on a node, or is as good as there.
    pub fn place(&mut self, demand: Demand, node: &str) {
        let key = key_of(demand.pod.as_ref());
        self.unplace(&key);
        self.nodes.entry(node.to_string()).or_insert_with(NodeInfo::empty).add(&demand);
        self.placed.insert(key, Placed { node: node.to_string(), demand });
    }

    /// A pod is gone, finished, or was not bound after all. Whether it had a place.
    pub fn unplace(&mut self, key: &str) -> bool {
        let Some(placed) = self.placed.remove(key) else { return false };
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            info.remove(&placed.demand);
            if info.node.is_none() && info.pods == 0 {
                self.nodes.remove(&placed.node);
            }
        }
        true
    }

    /// Whether this very pod has a place.
    pub fn is_placed(&self, pod: &Pod) -> bool {
        self.placed.get(&key_of(pod)).is_some_and(|p| p.demand.pod.uid() == pod.uid())
    }
}
