//! Two pods cannot have the same port of a node.

use coracle_controllers::view::Node;

use super::Reasons;
use crate::demand::Demand;
use crate::snapshot::NodeInfo;

/// Refuses nodes where a wanted host port is taken.
pub fn filter(demand: &Demand, _: &Node, info: &NodeInfo) -> Reasons {
    let taken = demand.ports.iter().any(|port| info.ports.iter().any(|other| other.conflicts(port)));
    if taken { vec!["node(s) didn't have free ports for the requested pod ports".into()] } else { Vec::new() }
}
