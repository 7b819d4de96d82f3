//! `spec.unschedulable` of a node (`kubectl cordon`).

use coracle_controllers::placement::tolerates;
use k8s_openapi::api::core::v1::Taint;

use super::Reasons;
use crate::cycle::Cycle;
use crate::snapshot::Room;

/// Refuses a cordoned node, unless the pod tolerates that.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let key = "node.kubernetes.io/unschedulable".to_owned();
    let taint = Taint { key, effect: "NoSchedule".to_owned(), ..Taint::default() };
    let refused = room.node.unschedulable && !cycle.pod.tolerations.iter().any(|one| tolerates(one, &taint));
    if refused { vec!["node(s) were unschedulable".to_owned()] } else { Vec::new() }
}
