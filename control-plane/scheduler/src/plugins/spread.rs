//! Topology spread constraints: a pod's kind evenly over domains.

use std::collections::HashMap;

use coracle_api::labels::Selector;
use coracle_controllers::placement;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use super::{Reasons, normalized, taints};
use crate::cycle::{Cycle, Room, Snapshot};
use crate::view::PodView;
use crate::world::selector;

/// A constraint, and how many pods each domain has.
pub struct Constraint {
    topology: String,
    max_skew: i64,
    min_domains: usize,
    /// Whether the pod counts itself.
    own: bool,
    counts: HashMap<String, i64>,
}

/// The constraints of a pod, those that forbid nodes or those that only prefer some.
pub fn constraints(pod: &PodView, snapshot: &Snapshot, hard: bool) -> Vec<Constraint> {
    let wanted = |one: &&TopologySpreadConstraint| (one.when_unsatisfiable == "DoNotSchedule") == hard;
    let given: Vec<_> = pod.spread.iter().filter(wanted).collect();
    given.iter().map(|one| constraint(pod, snapshot, one, &given)).collect()
}

fn constraint(
    pod: &PodView,
    snapshot: &Snapshot,
    one: &TopologySpreadConstraint,
    all: &[&TopologySpreadConstraint],
) -> Constraint {
    let pods = pods_of(pod, one);
    let mut counts: HashMap<String, i64> = HashMap::new();
    for room in snapshot.nodes() {
        let labels = &room.node.labels;
        // A node that lacks a label of any constraint is in no domain.
        let (Some(value), true) =
            (labels.get(&one.topology_key), all.iter().all(|c| labels.contains_key(&c.topology_key)))
        else {
            continue;
        };
        let ignores_affinity = one.node_affinity_policy.as_deref() == Some("Ignore");
        let selected = ignores_affinity
            || placement::selects(&pod.node_selector, pod.affinity.as_deref(), labels, &room.node.name);
        let tolerated =
            one.node_taints_policy.as_deref() != Some("Honor") || taints::refused(pod, room).is_none();
        if !selected || !tolerated {
            continue;
        }
        let there = room
            .pods
            .values()
            .filter(|other| other.namespace == pod.namespace && !other.deleting && matches(&pods, other));
        *counts.entry(value.clone()).or_default() += i64::try_from(there.count()).unwrap_or(0);
    }
    Constraint {
        topology: one.topology_key.clone(),
        max_skew: i64::from(one.max_skew),
        min_domains: usize::try_from(one.min_domains.unwrap_or(1)).unwrap_or(1),
        own: matches(&pods, pod),
        counts,
    }
}

// `matchLabelKeys` adds the pod's own values; the API server writes them into the selector too, which does no harm.
fn pods_of(pod: &PodView, one: &TopologySpreadConstraint) -> (Selector, Vec<(String, String)>) {
    let keys = one.match_label_keys.iter().flatten();
    let own = keys.filter_map(|key| Some((key.clone(), pod.labels.get(key)?.clone()))).collect();
    (selector(one.label_selector.as_ref()), own)
}

fn matches(pods: &(Selector, Vec<(String, String)>), pod: &PodView) -> bool {
    let (selector, own) = pods;
    selector.matches(|key| pod.labels.get(key).map(String::as_str))
        && own.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// Refuses a node whose domain would have too many.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let words = "node(s) didn't match pod topology spread constraints";
    for one in &cycle.spread {
        let Some(value) = room.node.labels.get(&one.topology) else {
            return vec![format!("{words} (missing required label)")];
        };
        let least = if one.counts.len() < one.min_domains {
            0
        } else {
            one.counts.values().min().copied().unwrap_or(0)
        };
        let there = one.counts.get(value).copied().unwrap_or(0);
        if there + i64::from(one.own) - least > one.max_skew {
            return vec![words.to_owned()];
        }
    }
    Vec::new()
}

/// Prefers domains with fewer pods, for constraints that forbid nothing.
pub fn prefer_spread(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let soft = constraints(cycle.pod, cycle.snapshot, false);
    if soft.is_empty() {
        return vec![0; rooms.len()];
    }
    let score = |room: &&Room| {
        let there = soft.iter().map(|one| {
            let value = room.node.labels.get(&one.topology);
            // A node without the label is the last choice.
            value.map_or(1_000_000, |value| one.counts.get(value).copied().unwrap_or(0))
        });
        -there.sum::<i64>()
    };
    normalized(&rooms.iter().map(score).collect::<Vec<_>>())
}
