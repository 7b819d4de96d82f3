//! Volumes: where a pod's claims can be had.

use std::sync::Arc;

use coracle_api::quantity::Quantity;
use coracle_controllers::placement::matches;
use coracle_controllers::view::{Meta, PersistentVolume, PersistentVolumeClaim, StorageClass};

use super::Reasons;
use crate::cycle::Cycle;
use crate::snapshot::Room;
use crate::view::PodView;
use crate::world::{World, is_bound};

/// Annotation that tells who provides volumes on which node a claim's first pod will be.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// A claim of the pod, and what is known of it.
#[derive(Clone)]
pub enum Claim {
    /// It has this volume.
    Bound(Arc<PersistentVolume>),
    /// It gets its volume when the pod's node is known.
    Waits(Arc<PersistentVolumeClaim>, Arc<StorageClass>),
}

/// The claims of a pod.
///
/// # Errors
/// Why the pod can be on no node now.
pub fn claims(pod: &PodView, world: &World) -> Result<Vec<Claim>, String> {
    pod.claims.iter().map(|name| claim(pod, name, world)).collect()
}

fn claim(pod: &PodView, name: &str, world: &World) -> Result<Claim, String> {
    let Some(claim) = world.claims.get(&format!("{}/{name}", pod.namespace)) else {
        return Err(format!("persistentvolumeclaim \"{name}\" not found"));
    };
    if claim.is_terminating() {
        return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
    }
    if claim.status.phase.as_deref() == Some("Lost") {
        return Err(format!("persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume"));
    }
    if is_bound(&claim) {
        let volume = claim.volume().and_then(|volume| world.volumes.get(volume));
        return volume.map(Claim::Bound).ok_or_else(|| {
            let volume = claim.volume().unwrap_or_default();
            format!("persistentvolume \"{volume}\" not found")
        });
    }
    let class = claim.spec.storage_class_name.as_deref().and_then(|class| world.classes.get(class));
    let waits = class
        .filter(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
        .filter(|_| claim.volume().is_none());
    match waits {
        Some(class) => Ok(Claim::Waits(claim, class)),
        None => Err("pod has unbound immediate PersistentVolumeClaims".to_owned()),
    }
}

/// Refuses a node from which a volume cannot be reached, or for which none can be had.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    for claim in &cycle.claims {
        match claim {
            Claim::Bound(volume) if !reachable(volume, room) => {
                return vec!["node(s) didn't match PersistentVolume's node affinity".to_owned()];
            }
            Claim::Waits(claim, _) if kept(claim, cycle.world).is_some() => {
                if kept(claim, cycle.world).is_some_and(|volume| !reachable(&volume, room)) {
                    return vec!["node(s) didn't match PersistentVolume's node affinity".to_owned()];
                }
            }
            Claim::Waits(claim, class) => {
                let selected = claim.annotation(SELECTED_NODE).filter(|node| !node.is_empty());
                if selected.is_some_and(|node| node != room.node.name) {
                    return vec![
                        "node(s) didn't match the node selected for a PersistentVolumeClaim".to_owned(),
                    ];
                }
                let provided = class.provisioner != NO_PROVISIONER;
                if !provided && found(claim, room, cycle.world).is_none() {
                    return vec!["node(s) didn't find available persistent volumes to bind".to_owned()];
                }
            }
            Claim::Bound(_) => {}
        }
    }
    Vec::new()
}

/// The volume that is kept for a claim already.
pub fn kept(claim: &PersistentVolumeClaim, world: &World) -> Option<Arc<PersistentVolume>> {
    let volumes = world.volumes.by(&format!("claim:{}/{}", claim.namespace(), claim.name()));
    volumes.into_iter().find(|volume| coracle_controllers::volume::kept_for(volume, claim))
}

fn reachable(volume: &PersistentVolume, room: &Room) -> bool {
    let affinity = volume.spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    affinity.is_none_or(|selector| matches(selector, &room.node.labels, &room.node.name))
}

/// The smallest volume that nobody has, fits a claim and can be reached from a node.
pub fn found(claim: &PersistentVolumeClaim, room: &Room, world: &World) -> Option<Arc<PersistentVolume>> {
    let volumes = world.volumes.all().into_iter();
    let fits = volumes.filter(|volume| {
        volume.spec.claim_ref.is_none()
            && coracle_controllers::volume::fits(volume, claim)
            && reachable(volume, room)
    });
    fits.min_by_key(|volume| (capacity(volume), volume.name().to_owned()))
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let text = volume.spec.capacity.get("storage");
    text.and_then(|text| Quantity::parse(text).ok()).map_or(i64::MAX, |quantity| quantity.value())
}
