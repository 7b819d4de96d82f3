//! A pod that names its node goes nowhere else.

use coracle_controllers::view::{Meta, Node};

use super::Reasons;
use crate::demand::Demand;
use crate::snapshot::NodeInfo;

/// Refuses every node but the named one.
pub fn filter(demand: &Demand, node: &Node, _: &NodeInfo) -> Reasons {
    match demand.pod.node() {
        Some(name) if name != node.name() => vec!["node(s) didn't match the requested node name".into()],
        _ => Vec::new(),
    }
}
