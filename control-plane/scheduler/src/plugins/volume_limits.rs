//! NodeVolumeLimits: a driver attaches so many volumes to a node and no more (CSINode).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coracle_controllers::view::{PersistentVolume, PersistentVolumeClaim};

use super::Reasons;
use super::volumes::Claim;
use crate::cycle::Cycle;
use crate::snapshot::Room;
use crate::world::World;

/// The driver of a volume and the volume's own name there.
fn handle(volume: &PersistentVolume) -> Option<(String, String)> {
    let csi = volume.spec.csi.as_ref()?;
    Some((csi.driver.clone(), csi.volume_handle.clone()))
}

fn of_claim(claim: &Arc<PersistentVolumeClaim>, world: &World) -> Option<(String, String)> {
    handle(world.volumes.get(claim.volume()?)?.as_ref())
}

/// Refuses a node where a driver would have too many volumes.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    if cycle.claims.is_empty() {
        return Vec::new();
    }
    let Some(limits) = cycle.world.csi_nodes.get(&room.node.name) else { return Vec::new() };
    let mut new: BTreeSet<(String, String)> = BTreeSet::new();
    for (place, claim) in cycle.claims.iter().enumerate() {
        match claim {
            Claim::Bound(volume) => new.extend(handle(volume)),
            Claim::Waits(_, class) => drop(new.insert((class.provisioner.clone(), format!("new {place}")))),
        }
    }
    let mut there: BTreeSet<(String, String)> = BTreeSet::new();
    for pod in room.pods.values() {
        let claims = pod.claims.iter();
        let claims = claims.filter_map(|name| cycle.world.claims.get(&format!("{}/{name}", pod.namespace)));
        there.extend(claims.filter_map(|claim| of_claim(&claim, cycle.world)));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (driver, _) in there.union(&new) {
        *counts.entry(driver).or_default() += 1;
    }
    let over = limits.spec.drivers.iter().any(|driver| {
        let most = driver.allocatable.as_ref().and_then(|a| a.count).and_then(|n| usize::try_from(n).ok());
        let asked = new.iter().any(|(name, _)| *name == driver.name);
        asked && most.is_some_and(|most| counts.get(driver.name.as_str()).copied().unwrap_or(0) > most)
    });
    if over { vec!["node(s) exceed max volume count".to_owned()] } else { Vec::new() }
}
