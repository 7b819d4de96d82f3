//! Requests fit into what a node has left; extended resources such as GPUs too.

use super::{BEST, Reasons};
use crate::cycle::{Cycle, Room};

/// Refuses a node without room, with a reason for each resource that is short.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let short = cycle.pod.requests.iter().filter(|(name, wanted)| {
        let all = room.node.allocatable.get(*name).copied().unwrap_or(0);
        let used = room.used.get(*name).copied().unwrap_or(0);
        **wanted > 0 && all.saturating_sub(used) < **wanted
    });
    let word = |(name, _): (&String, &i64)| match name.as_str() {
        "pods" => "Too many pods".to_owned(),
        name => format!("Insufficient {name}"),
    };
    short.map(word).collect()
}

/// Prefers nodes with much room left, over CPU and memory.
pub fn least_allocated(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    rooms.iter().map(|room| left(cycle, room)).collect()
}

fn left(cycle: &Cycle<'_>, room: &Room) -> i64 {
    let left = |name: &str| {
        let all = room.node.allocatable.get(name).copied().unwrap_or(0);
        let wanted = cycle.pod.requests.get(name).copied().unwrap_or(0);
        let used = room.used.get(name).copied().unwrap_or(0) + wanted;
        if all <= 0 {
            0
        } else {
            i64::try_from(i128::from((all - used).max(0)) * i128::from(BEST) / i128::from(all)).unwrap_or(0)
        }
    };
    (left("cpu") + left("memory") + left("pods")) / 3
}
