//! Changes that may help a pod that no node would take: a set of bits, so that only those pods are tried again.

use crate::view::NodeView;

/// There is one more node.
pub const NODE_CAME: u32 = 1;
/// A node has more room.
pub const NODE_ROOM: u32 = 1 << 1;
/// Labels of a node changed.
pub const NODE_LABELS: u32 = 1 << 2;
/// Taints of a node changed, or whether it takes pods at all.
pub const NODE_TAINTS: u32 = 1 << 3;
/// A pod gave its room back, or lost labels that kept others away.
pub const POD_GONE: u32 = 1 << 4;
/// A pod came that others want to be near to.
pub const POD_CAME: u32 = 1 << 5;
/// Volumes, storage classes, or what drivers can hold.
pub const VOLUMES: u32 = 1 << 6;
/// Claims.
pub const CLAIMS: u32 = 1 << 7;
/// Devices, classes of them, and claims of them.
pub const DEVICES: u32 = 1 << 8;
/// More pods of a group, or the group itself.
pub const GROUP: u32 = 1 << 9;
/// Whatever it is.
pub const ANYTHING: u32 = u32::MAX;

/// What a changed node may help with.
pub fn of_node(old: Option<&NodeView>, new: &NodeView) -> u32 {
    let Some(old) = old.filter(|old| !old.name.is_empty()) else { return NODE_CAME };
    let more =
        new.allocatable.iter().any(|(name, has)| old.allocatable.get(name).is_none_or(|had| has > had));
    let bit = |changed: bool, bit: u32| if changed { bit } else { 0 };
    bit(more, NODE_ROOM)
        | bit(old.labels != new.labels, NODE_LABELS)
        | bit(old.taints != new.taints || old.unschedulable != new.unschedulable, NODE_TAINTS)
}
