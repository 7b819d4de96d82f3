//! Taints and tolerations.

use coracle_controllers::placement::tolerates;
use k8s_openapi::api::core::v1::Taint;

use super::{BEST, Reasons};
use crate::cycle::Room;
use crate::view::PodView;

/// Refuses a node with a NoSchedule or NoExecute taint that the pod does not tolerate.
pub fn filter(pod: &PodView, room: &Room) -> Reasons {
    let hard = room.node.taints.iter().filter(|taint| taint.effect != "PreferNoSchedule");
    let untolerated = hard.into_iter().find(|taint| !tolerated(pod, taint));
    untolerated
        .map(|taint| {
            let value = taint.value.as_deref().unwrap_or_default();
            format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)
        })
        .into_iter()
        .collect()
}

/// Prefers nodes without PreferNoSchedule taints that the pod does not tolerate.
pub fn prefer_untainted(pod: &PodView, room: &Room) -> i64 {
    let soft = room.node.taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
    let bad = soft.filter(|taint| !tolerated(pod, taint)).count();
    BEST - i64::try_from(bad).unwrap_or(10).min(10) * (BEST / 10)
}

fn tolerated(pod: &PodView, taint: &Taint) -> bool {
    pod.tolerations.iter().any(|one| tolerates(one, taint))
}
