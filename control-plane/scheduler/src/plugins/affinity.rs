//! Node selector and node affinity.

use coracle_controllers::placement;

use super::{Reasons, normalized};
use crate::cycle::Cycle;
use crate::snapshot::Room;

/// Refuses a node whose labels do not match.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let (pod, node) = (cycle.pod, &room.node);
    let added = cycle.profile.added_affinity.as_ref();
    if added.is_none_or(|one| placement::matches(one, &node.labels, &node.name))
        && placement::selects(&pod.node_selector, pod.affinity.as_deref(), &node.labels, &node.name)
    {
        Vec::new()
    } else {
        vec!["node(s) didn't match Pod's node affinity/selector".to_owned()]
    }
}

/// Prefers nodes that match preferred terms, by their weights.
pub fn preferred(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let affinity = cycle.pod.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let terms = affinity.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_deref());
    let terms = terms.unwrap_or_default();
    let score = |room: &&Room| {
        let held = terms
            .iter()
            .filter(|term| placement::term_matches(&term.preference, &room.node.labels, &room.node.name));
        held.map(|term| i64::from(term.weight)).sum()
    };
    normalized(&rooms.iter().map(score).collect::<Vec<_>>())
}
