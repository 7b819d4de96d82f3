//! Host ports: each is had by one pod of a node, on an address or on all.

use std::collections::BTreeMap;

use super::Reasons;
use crate::cycle::Cycle;
use crate::snapshot::Room;

/// A host port: protocol, number and address.
pub type HostPort = (String, i32, String);

/// All addresses of a node.
pub const ANY: &str = "0.0.0.0";

/// Whether a port is taken, on its address or on all.
fn taken(there: &BTreeMap<HostPort, usize>, (protocol, port, address): &HostPort) -> bool {
    let from = (protocol.clone(), *port, String::new());
    let same = there.range(from..).take_while(|((p, n, _), _)| p == protocol && n == port);
    same.into_iter().any(|((_, _, other), _)| other == address || other == ANY || address == ANY)
}

/// Refuses a node where one of the pod's host ports is taken.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    if cycle.pod.host_ports.iter().any(|port| taken(&room.host_ports, port)) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    Vec::new()
}
