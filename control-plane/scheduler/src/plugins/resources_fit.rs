//! Requests fit into what a node has left; extended resources such as GPUs too.

use super::{BEST, Reasons};
use crate::cycle::Room;
use crate::view::PodView;

/// Refuses a node without room, with a reason for each resource that is short.
pub fn filter(pod: &PodView, room: &Room) -> Reasons {
    let short = pod.requests.iter().filter(|(name, wanted)| {
        let all = room.node.allocatable.get(*name).copied().unwrap_or(0);
        let used = room.used.get(*name).copied().unwrap_or(0);
        **wanted > 0 && all.saturating_sub(used) < **wanted
    });
    short
        .map(
            |(name, _)| {
                if name == "pods" { "Too many pods".to_owned() } else { format!("Insufficient {name}") }
            },
        )
        .collect()
}

/// Prefers nodes with much room left, over CPU and memory.
pub fn least_allocated(pod: &PodView, room: &Room) -> i64 {
    let left = |name: &str| {
        let all = room.node.allocatable.get(name).copied().unwrap_or(0);
        let used = room.used.get(name).copied().unwrap_or(0) + pod.requests.get(name).copied().unwrap_or(0);
        if all <= 0 {
            0
        } else {
            i64::try_from(i128::from((all - used).max(0)) * i128::from(BEST) / i128::from(all)).unwrap_or(0)
        }
    };
    (left("cpu") + left("memory") + left("pods")) / 3
}
