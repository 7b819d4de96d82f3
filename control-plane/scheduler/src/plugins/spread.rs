//! Topology spread constraints: a pod's kind evenly over domains.

use std::collections::HashMap;

use coracle_api::labels::Selector;
use coracle_controllers::placement;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use super::{Reasons, normalized, taints};
use crate::cycle::Cycle;
use crate::profile::Profile;
use crate::snapshot::{Room, Snapshot};
use crate::view::PodView;
use crate::world::selector;

/// Which pods a constraint counts.
#[derive(Clone)]
enum Pods {
    /// Those with these labels, and the pod's own values of some.
    Labelled(Selector, Vec<(String, String)>),
    /// Those of the pod's owner.
    OfOwner(String),
}

/// A constraint, and how many pods each domain has.
#[derive(Clone)]
pub struct Constraint {
    topology: String,
    pods: Pods,
    max_skew: i64,
    min_domains: usize,
    /// Whether the pod counts itself.
    own: bool,
    counts: HashMap<String, i64>,
}

/// The constraints of a pod, those that forbid nodes or those that only prefer some. A pod that has none, but an owner, has
/// the profile's.
pub fn constraints(pod: &PodView, snapshot: &Snapshot, profile: &Profile, hard: bool) -> Vec<Constraint> {
    let wanted = |one: &&TopologySpreadConstraint| (one.when_unsatisfiable == "DoNotSchedule") == hard;
    if pod.spread.is_empty() && !pod.owner.is_empty() {
        let given: Vec<_> = profile.spread.iter().filter(wanted).collect();
        let owner = || Pods::OfOwner(pod.owner.clone());
        // Nodes need not have the labels of all of them.
        return given.iter().map(|one| constraint(pod, snapshot, one, owner(), &[])).collect();
    }
    let given: Vec<_> = pod.spread.iter().filter(wanted).collect();
    given.iter().map(|one| constraint(pod, snapshot, one, pods_of(pod, one), &given)).collect()
}

fn constraint(
    pod: &PodView,
    snapshot: &Snapshot,
    one: &TopologySpreadConstraint,
    pods: Pods,
    all: &[&TopologySpreadConstraint],
) -> Constraint {
    let mut constraint = Constraint {
        topology: one.topology_key.clone(),
        max_skew: i64::from(one.max_skew),
        min_domains: usize::try_from(one.min_domains.unwrap_or(1)).unwrap_or(1),
        own: matches(&pods, pod),
        pods,
        counts: HashMap::new(),
    };
    if let (Pods::OfOwner(owner), false) = (&constraint.pods, one.when_unsatisfiable == "DoNotSchedule") {
        // Where only more or fewer matters, domains without any need no number.
        for (room, there) in snapshot.of_owner(owner) {
            let value = room.node.labels.get(&one.topology_key);
            let selected = placement::selects(
                &pod.node_selector,
                pod.affinity.as_deref(),
                &room.node.labels,
                &room.node.name,
            );
            if let Some(value) = value.filter(|_| selected) {
                *constraint.counts.entry(value.clone()).or_default() += i64::try_from(there).unwrap_or(0);
            }
        }
        return constraint;
    }
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
        let there = match &constraint.pods {
            Pods::OfOwner(owner) => room.owners.get(owner).copied().unwrap_or(0),
            pods => room.pods.values().filter(|other| counts(pods, pod, other)).count(),
        };
        *constraint.counts.entry(value.clone()).or_default() += i64::try_from(there).unwrap_or(0);
    }
    constraint
}

fn counts(pods: &Pods, pod: &PodView, other: &PodView) -> bool {
    other.namespace == pod.namespace && !other.deleting && matches(pods, other)
}

impl Constraint {
    /// Another pod of a node came (1) or went (-1).
    pub fn change(&mut self, pod: &PodView, other: &PodView, room: &Room, by: i64) {
        if counts(&self.pods, pod, other)
            && let Some(value) = room.node.labels.get(&self.topology)
            && let Some(count) = self.counts.get_mut(value)
        {
            *count += by;
        }
    }
}

// `matchLabelKeys` adds the pod's own values; the API server writes them into the selector too, which does no harm.
fn pods_of(pod: &PodView, one: &TopologySpreadConstraint) -> Pods {
    let keys = one.match_label_keys.iter().flatten();
    let own = keys.filter_map(|key| Some((key.clone(), pod.labels.get(key)?.clone()))).collect();
    Pods::Labelled(selector(one.label_selector.as_ref()), own)
}

fn matches(pods: &Pods, pod: &PodView) -> bool {
    match pods {
        Pods::OfOwner(owner) => pod.owner == *owner,
        Pods::Labelled(selector, own) => {
            selector.matches(|key| pod.labels.get(key).map(String::as_str))
                && own.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        }
    }
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
    let soft = constraints(cycle.pod, cycle.snapshot, cycle.profile, false);
    if soft.is_empty() {
        return vec![0; rooms.len()];
    }
    let score = |room: &&Room| {
        let there = soft.iter().map(|one| {
            let value = room.node.labels.get(&one.topology);
            // A node without the label is the last choice.
            let missing = if matches!(one.pods, Pods::OfOwner(_)) { 0 } else { 1_000_000 };
            value.map_or(missing, |value| one.counts.get(value).copied().unwrap_or(0))
        });
        -there.sum::<i64>()
    };
    normalized(&rooms.iter().map(score).collect::<Vec<_>>())
}
