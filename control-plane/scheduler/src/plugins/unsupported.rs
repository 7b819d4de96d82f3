//! What a pod requires of other pods' places is not decided here yet: such a pod waits with the reason, and is not placed as if
//! it had not asked.

use super::Reasons;
use crate::cycle::Room;
use crate::view::PodView;

/// Refuses every node for a pod with required pod affinity, anti-affinity or topology spread. Preferences may be ignored.
pub fn filter(pod: &PodView, _: &Room) -> Reasons {
    let affinity = pod.affinity.as_deref();
    let near = affinity
        .and_then(|all| all.pod_affinity.as_ref())
        .and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
    let far = affinity
        .and_then(|all| all.pod_anti_affinity.as_ref())
        .and_then(|one| one.required_during_scheduling_ignored_during_execution.as_ref());
    let asked = [
        (near.is_some_and(|terms| !terms.is_empty()), "pod affinity"),
        (far.is_some_and(|terms| !terms.is_empty()), "pod anti-affinity"),
        (pod.spreads, "topology spread constraints"),
    ];
    let words = asked.into_iter().filter(|(asked, _)| *asked);
    words.map(|(_, what)| format!("node(s) cannot be judged: {what} is not supported yet")).collect()
}
