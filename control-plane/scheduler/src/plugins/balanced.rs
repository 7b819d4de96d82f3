//! NodeResourcesBalancedAllocation: CPU and memory of a node are used up evenly.

use super::BEST;
use crate::cycle::Cycle;
use crate::snapshot::Room;

const RESOURCES: [&str; 2] = ["cpu", "memory"];

/// Prefers nodes whose CPU and memory would be used to a like part; of no interest for pods that ask for neither.
pub fn score(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let wanted = |name: &str| cycle.pod.requests.get(name).copied().unwrap_or(0);
    if RESOURCES.iter().all(|name| wanted(name) == 0) {
        return vec![0; rooms.len()];
    }
    let part = |room: &Room, name: &str| {
        let all = room.node.allocatable.get(name).copied().unwrap_or(0);
        let used = room.used.get(name).copied().unwrap_or(0).saturating_add(wanted(name));
        if all <= 0 { 1.0 } else { (used as f64 / all as f64).min(1.0) }
    };
    let [cpu, memory] = RESOURCES;
    let score = |room: &&Room| {
        // The standard deviation of two numbers.
        let deviation = (part(room, cpu) - part(room, memory)).abs() / 2.0;
        ((1.0 - deviation) * BEST as f64) as i64
    };
    rooms.iter().map(score).collect()
}
