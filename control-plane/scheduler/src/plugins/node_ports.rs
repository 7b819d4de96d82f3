//! Host ports: each is had by one pod of a node.

use super::Reasons;
use crate::cycle::Room;
use crate::view::PodView;

/// Refuses a node where one of the pod's host ports is taken.
pub fn filter(pod: &PodView, room: &Room) -> Reasons {
    if pod.host_ports.iter().any(|port| room.host_ports.contains_key(port)) {
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    Vec::new()
}
