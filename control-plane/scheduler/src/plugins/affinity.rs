//! Node selector and required node affinity.

use coracle_controllers::placement;

use super::Reasons;
use crate::cycle::Room;
use crate::view::PodView;

/// Refuses a node whose labels do not match.
pub fn filter(pod: &PodView, room: &Room) -> Reasons {
    let node = &room.node;
    if placement::selects(&pod.node_selector, pod.affinity.as_deref(), &node.labels, &node.name) {
        Vec::new()
    } else {
        vec!["node(s) didn't match Pod's node affinity/selector".to_owned()]
    }
}
