//! Pod affinity and anti-affinity: near to or far from other pods, in domains that a node label makes.

use std::collections::HashMap;

use coracle_api::labels::Selector;
use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};

use super::{Reasons, normalized};
use crate::cycle::{Cycle, Room, Snapshot};
use crate::view::PodView;
use crate::world::{World, selector};

/// A term, ready to be asked of pods.
struct Term {
    topology: String,
    pods: Selector,
    /// Names; empty with `any` for all.
    namespaces: Vec<String>,
    by_label: Option<Selector>,
}

impl Term {
    fn of(term: &PodAffinityTerm, owner: &PodView) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        let by_label = term.namespace_selector.as_ref().map(|one| selector(Some(one)));
        if namespaces.is_empty() && by_label.is_none() {
            namespaces.push(owner.namespace.clone());
        }
        let pods = selector(term.label_selector.as_ref());
        Self { topology: term.topology_key.clone(), pods, namespaces, by_label }
    }

    fn matches(&self, pod: &PodView, world: &World) -> bool {
        let named = self.namespaces.contains(&pod.namespace);
        let labelled = || {
            let all = |one: &Selector| one.is_everything() || world.namespace_matches(one, &pod.namespace);
            self.by_label.as_ref().is_some_and(all)
        };
        self.pods.matches(|key| pod.labels.get(key).map(String::as_str)) && (named || labelled())
    }
}

/// A value of a topology label: `(key, value)`.
type Domain = (String, String);

/// What is known of other pods before nodes are looked at.
#[derive(Default)]
pub struct Near {
    wanted: Vec<Term>,
    unwanted: Vec<Term>,
    /// For each wanted term, how many matching pods each domain has.
    near: Vec<HashMap<Domain, usize>>,
    far: Vec<HashMap<Domain, usize>>,
    /// Domains that pods which are there keep this pod out of.
    forbidden: HashMap<Domain, usize>,
    /// No pod matches what it wants, but it does so itself: the first of its kind.
    first: bool,
}

/// The required terms of a pod: near and far.
fn required(pod: &PodView) -> (&[PodAffinityTerm], &[PodAffinityTerm]) {
    let affinity = pod.affinity.as_deref();
    let near = affinity.and_then(|all| all.pod_affinity.as_ref());
    let near = near.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_deref());
    let far = affinity.and_then(|all| all.pod_anti_affinity.as_ref());
    let far = far.and_then(|one| one.required_during_scheduling_ignored_during_execution.as_deref());
    (near.unwrap_or_default(), far.unwrap_or_default())
}

/// Whether a pod keeps others away.
pub fn keeps_away(pod: &PodView) -> bool {
    !required(pod).1.is_empty()
}

impl Near {
    /// Looks at every pod once.
    pub fn of(pod: &PodView, snapshot: &Snapshot, world: &World) -> Self {
        let (near, far) = required(pod);
        let terms = |all: &[PodAffinityTerm]| all.iter().map(|term| Term::of(term, pod)).collect::<Vec<_>>();
        let mut this = Self { wanted: terms(near), unwanted: terms(far), ..Self::default() };
        this.near = vec![HashMap::new(); this.wanted.len()];
        this.far = vec![HashMap::new(); this.unwanted.len()];
        for room in snapshot.nodes() {
            if this.wanted.is_empty() && this.unwanted.is_empty() && room.keep_away == 0 {
                continue;
            }
            for other in room.pods.values() {
                this.see(pod, other, room, world);
            }
        }
        let nobody = this.near.iter().all(HashMap::is_empty);
        this.first = nobody && this.wanted.iter().all(|term| term.matches(pod, world));
        this
    }

    fn see(&mut self, pod: &PodView, other: &PodView, room: &Room, world: &World) {
        // A pod is near only if it matches all that is wanted.
        if !self.wanted.is_empty() && self.wanted.iter().all(|term| term.matches(other, world)) {
            count(&self.wanted, &mut self.near, room, |_| true);
        }
        count(&self.unwanted, &mut self.far, room, |term| term.matches(other, world));
        for term in required(other).1 {
            let term = Term::of(term, other);
            if term.matches(pod, world)
                && let Some(value) = room.node.labels.get(&term.topology)
            {
                *self.forbidden.entry((term.topology, value.clone())).or_default() += 1;
            }
        }
    }
}

fn count(terms: &[Term], counts: &mut [HashMap<Domain, usize>], room: &Room, is: impl Fn(&Term) -> bool) {
    for (term, counts) in terms.iter().zip(counts) {
        if let Some(value) = room.node.labels.get(&term.topology)
            && is(term)
        {
            *counts.entry((term.topology.clone(), value.clone())).or_default() += 1;
        }
    }
}

/// Refuses a node whose domains have the wrong pods.
pub fn filter(cycle: &Cycle<'_>, room: &Room) -> Reasons {
    let (near, labels) = (&cycle.near, &room.node.labels);
    let domain = |term: &Term| labels.get(&term.topology).map(|v| (term.topology.clone(), v.clone()));
    let satisfied =
        near.wanted.iter().zip(&near.near).all(|(term, counts)| {
            domain(term).is_some_and(|domain| near.first || counts.contains_key(&domain))
        });
    if !satisfied {
        return vec!["node(s) didn't match pod affinity rules".to_owned()];
    }
    let clash = near
        .unwanted
        .iter()
        .zip(&near.far)
        .any(|(term, counts)| domain(term).is_some_and(|domain| counts.contains_key(&domain)));
    if clash {
        return vec!["node(s) didn't match pod anti-affinity rules".to_owned()];
    }
    if near.forbidden.keys().any(|(key, value)| labels.get(key) == Some(value)) {
        return vec!["node(s) didn't satisfy existing pods anti-affinity rules".to_owned()];
    }
    Vec::new()
}

/// Prefers domains by the weights of preferred terms and the pods there.
pub fn prefer(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let affinity = cycle.pod.affinity.as_deref();
    let near = affinity.and_then(|all| all.pod_affinity.as_ref());
    let near = near.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_deref());
    let far = affinity.and_then(|all| all.pod_anti_affinity.as_ref());
    let far = far.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_deref());
    let weighted = |terms: Option<&[WeightedPodAffinityTerm]>, sign: i64| -> Vec<(Term, i64)> {
        let terms = terms.unwrap_or_default().iter();
        terms.map(|one| (Term::of(&one.pod_affinity_term, cycle.pod), sign * i64::from(one.weight))).collect()
    };
    let mut terms = weighted(near, 1);
    terms.extend(weighted(far, -1));
    if terms.is_empty() {
        return vec![0; rooms.len()];
    }
    let mut sums: HashMap<Domain, i64> = HashMap::new();
    for room in cycle.snapshot.nodes() {
        for (term, weight) in &terms {
            let Some(value) = room.node.labels.get(&term.topology) else { continue };
            let there = room.pods.values().filter(|other| term.matches(other, cycle.world)).count();
            let sum = sums.entry((term.topology.clone(), value.clone())).or_default();
            *sum += weight * i64::try_from(there).unwrap_or(0);
        }
    }
    let score = |room: &&Room| {
        let held = sums.iter().filter(|((key, value), _)| room.node.labels.get(key) == Some(value));
        held.map(|(_, sum)| sum).sum()
    };
    normalized(&rooms.iter().map(score).collect::<Vec<_>>())
}
