//! DynamicResources: devices that the pod claims; see [`crate::devices`].

use super::Reasons;
use crate::cycle::Cycle;
use crate::snapshot::Room;

/// Refuses a node that cannot reach what the pod's claims have, or has not what they want.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    cycle.devices.refuse(room).map(str::to_owned).into_iter().collect()
}
