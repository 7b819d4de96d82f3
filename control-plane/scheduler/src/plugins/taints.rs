//! Taints and tolerations.

use coracle_controllers::placement::tolerates;
use k8s_openapi::api::core::v1::Taint;

use super::{BEST, Reasons};
use crate::cycle::Cycle;
use crate::snapshot::Room;
use crate::view::PodView;

/// Refuses a node with a NoSchedule or NoExecute taint that the pod does not tolerate.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let words = refused(cycle.pod, room).map(|taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)
    });
    words.into_iter().collect()
}

/// The first taint that keeps a pod off a node.
pub fn refused<'a>(pod: &PodView, room: &'a Room) -> Option<&'a Taint> {
    let mut hard = room.node.taints.iter().filter(|taint| taint.effect != "PreferNoSchedule");
    hard.find(|taint| !tolerated(pod, taint))
}

/// Prefers nodes without PreferNoSchedule taints that the pod does not tolerate.
pub fn prefer_untainted(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let score = |room: &&Room| {
        let soft = room.node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let bad = soft.filter(|taint| !tolerated(cycle.pod, taint)).count();
        BEST - i64::try_from(bad).unwrap_or(10).min(10) * (BEST / 10)
    };
    rooms.iter().map(score).collect()
}

fn tolerated(pod: &PodView, taint: &Taint) -> bool {
    pod.tolerations.iter().any(|one| tolerates(one, taint))
}
