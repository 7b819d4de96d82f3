//! Host ports: each is had by one pod of a node.

use super::Reasons;
use crate::cycle::{Cycle, Room};

/// Refuses a node where one of the pod's host ports is taken.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    if cycle.pod.host_ports.iter().any(|port| room.host_ports.contains_key(port)) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    Vec::new()
}
