//! VolumeRestrictions: a claim with ReadWriteOncePod is had by one pod.

use super::Reasons;
use crate::cycle::Cycle;
use crate::snapshot::{Room, Snapshot};
use crate::view::PodView;
use crate::world::World;

/// Claims of the pod, as `namespace/name`, that one pod at a time may have.
pub fn single(pod: &PodView, world: &World) -> Vec<String> {
    let keys = pod.claims.iter().map(|name| format!("{}/{name}", pod.namespace));
    let single = |key: &String| {
        let claim = world.claims.get(key);
        claim.is_some_and(|c| c.spec.access_modes.iter().any(|mode| mode == "ReadWriteOncePod"))
    };
    keys.filter(single).collect()
}

/// Those of them that another pod has.
pub fn taken(pod: &PodView, snapshot: &Snapshot, world: &World) -> Vec<String> {
    let mut single = single(pod, world);
    let has = |other: &PodView, key: &String| {
        other.claims.iter().any(|name| format!("{}/{name}", other.namespace) == *key)
    };
    if !single.is_empty() {
        single.retain(|key| snapshot.nodes().flat_map(|room| room.pods.values()).any(|one| has(one, key)));
    }
    single
}

/// Refuses every node while another pod has the claim; stopping that pod may help.
pub fn filter(cycle: &Cycle<'_>, _room: &Room) -> Reasons {
    if cycle.taken_claims.is_empty() {
        return Vec::new();
    }
    let words =
        "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
    vec![words.to_owned()]
}
