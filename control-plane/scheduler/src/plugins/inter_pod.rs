//! Pod affinity and anti-affinity: near to or far from other pods, in domains that a node label makes.

use std::collections::HashMap;

use coracle_api::labels::Selector;
use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};

use super::{Reasons, normalized};
use crate::cycle::Cycle;
use crate::snapshot::{Room, Snapshot};
use crate::view::PodView;
use crate::world::{World, selector};

/// A term, ready to be asked of pods.
#[derive(Clone)]
struct Term {
    topology: String,
    pods: Selector,
    /// Values that must (true) or must not be the same as the owner's: `matchLabelKeys`, `mismatchLabelKeys`.
    keys: Vec<(String, String, bool)>,
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
        let own = |keys: &Option<Vec<String>>, same: bool| -> Vec<(String, String, bool)> {
            let keys = keys.iter().flatten();
            keys.filter_map(|key| Some((key.clone(), owner.labels.get(key)?.clone(), same))).collect()
        };
        let mut keys = own(&term.match_label_keys, true);
        keys.extend(own(&term.mismatch_label_keys, false));
        Self { topology: term.topology_key.clone(), pods, keys, namespaces, by_label }
    }

    fn matches(&self, pod: &PodView, world: &World) -> bool {
        let named = self.namespaces.contains(&pod.namespace);
        let labelled = || {
            let all = |one: &Selector| one.is_everything() || world.namespace_matches(one, &pod.namespace);
            self.by_label.as_ref().is_some_and(all)
        };
        let keys =
            || self.keys.iter().all(|(key, value, same)| (pod.labels.get(key) == Some(value)) == *same);
        self.pods.matches(|key| pod.labels.get(key).map(String::as_str)) && keys() && (named || labelled())
    }
}

/// A value of a topology label: `(key, value)`.
type Domain = (String, String);

/// What is known of other pods before nodes are looked at.
#[derive(Clone, Default)]
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
    /// Looks at every pod once, if there is anything to look for.
    pub fn of(pod: &PodView, snapshot: &Snapshot, world: &World) -> Self {
        let (near, far) = required(pod);
        let terms = |all: &[PodAffinityTerm]| all.iter().map(|term| Term::of(term, pod)).collect::<Vec<_>>();
        let mut this = Self { wanted: terms(near), unwanted: terms(far), ..Self::default() };
        this.near = vec![HashMap::new(); this.wanted.len()];
        this.far = vec![HashMap::new(); this.unwanted.len()];
        if this.wanted.is_empty() && this.unwanted.is_empty() && snapshot.keeping_away() == 0 {
            return this;
        }
        for room in snapshot.nodes() {
            if this.wanted.is_empty() && this.unwanted.is_empty() && room.keep_away == 0 {
                continue;
            }
            for other in room.pods.values() {
                this.see(pod, other, room, world, 1);
            }
        }
        this.is_first(pod, world);
        this
    }

    fn is_first(&mut self, pod: &PodView, world: &World) {
        let nobody = self.near.iter().all(HashMap::is_empty);
        self.first = nobody && self.wanted.iter().all(|term| term.matches(pod, world));
    }

    /// Another pod of a node came (1) or went (-1).
    pub fn change(&mut self, pod: &PodView, other: &PodView, room: &Room, world: &World, by: isize) {
        self.see(pod, other, room, world, by);
        self.is_first(pod, world);
    }

    fn see(&mut self, pod: &PodView, other: &PodView, room: &Room, world: &World, by: isize) {
        // A pod is near only if it matches all that is wanted.
        if !self.wanted.is_empty() && self.wanted.iter().all(|term| term.matches(other, world)) {
            count(&self.wanted, &mut self.near, room, by, |_| true);
        }
        count(&self.unwanted, &mut self.far, room, by, |term| term.matches(other, world));
        for term in required(other).1 {
            let term = Term::of(term, other);
            if term.matches(pod, world)
                && let Some(value) = room.node.labels.get(&term.topology)
            {
                add(&mut self.forbidden, (term.topology, value.clone()), by);
            }
        }
    }
}

fn add(counts: &mut HashMap<Domain, usize>, domain: Domain, by: isize) {
    let count = counts.entry(domain.clone()).or_default();
    *count = count.saturating_add_signed(by);
    if *count == 0 {
        counts.remove(&domain);
    }
}

fn count(
    terms: &[Term],
    counts: &mut [HashMap<Domain, usize>],
    room: &Room,
    by: isize,
    is: impl Fn(&Term) -> bool,
) {
    for (term, counts) in terms.iter().zip(counts) {
        if let Some(value) = room.node.labels.get(&term.topology)
            && is(term)
        {
            add(counts, (term.topology.clone(), value.clone()), by);
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

/// The preferred terms of a pod, near ones with their weight, far ones with its negative.
fn preferred(pod: &PodView) -> Vec<(Term, i64)> {
    let affinity = pod.affinity.as_deref();
    let near = affinity.and_then(|all| all.pod_affinity.as_ref());
    let near = near.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_deref());
    let far = affinity.and_then(|all| all.pod_anti_affinity.as_ref());
    let far = far.and_then(|one| one.preferred_during_scheduling_ignored_during_execution.as_deref());
    let weighted = |terms: Option<&[WeightedPodAffinityTerm]>, sign: i64| -> Vec<(Term, i64)> {
        let terms = terms.unwrap_or_default().iter();
        terms.map(|one| (Term::of(&one.pod_affinity_term, pod), sign * i64::from(one.weight))).collect()
    };
    let mut terms = weighted(near, 1);
    terms.extend(weighted(far, -1));
    terms
}

/// Whether a pod has wishes on which pods are near it: preferred ones, or required ones that weigh for others too.
pub fn wishes(pod: &PodView) -> bool {
    let affinity = pod.affinity.as_deref();
    affinity.is_some_and(|all| all.pod_affinity.is_some() || all.pod_anti_affinity.is_some())
}

/// Prefers domains by the weights of preferred terms: the pod's own, and those of pods that are there and want this one.
pub fn prefer(cycle: &Cycle<'_>, rooms: &[&Room]) -> Vec<i64> {
    let terms = preferred(cycle.pod);
    if terms.is_empty() && cycle.snapshot.wishing() == 0 {
        return vec![0; rooms.len()];
    }
    let mut sums: HashMap<Domain, i64> = HashMap::new();
    let mut weigh = |room: &Room, term: &Term, weight: i64| {
        if let Some(value) = room.node.labels.get(&term.topology) {
            *sums.entry((term.topology.clone(), value.clone())).or_default() += weight;
        }
    };
    for room in cycle.snapshot.nodes() {
        if terms.is_empty() && room.wishing == 0 {
            continue;
        }
        for other in room.pods.values() {
            for (term, weight) in terms.iter().filter(|(term, _)| term.matches(other, cycle.world)) {
                weigh(room, term, *weight);
            }
            if !wishes(other) {
                continue;
            }
            let hard = required(other).0.iter();
            let hard = hard.map(|term| (Term::of(term, other), cycle.profile.hard_affinity_weight));
            for (term, weight) in preferred(other).into_iter().chain(hard) {
                if term.matches(cycle.pod, cycle.world) {
                    weigh(room, &term, weight);
                }
            }
        }
    }
    let score = |room: &&Room| {
        let held = sums.iter().filter(|((key, value), _)| room.node.labels.get(key) == Some(value));
        held.map(|(_, sum)| sum).sum()
    };
    normalized(&rooms.iter().map(score).collect::<Vec<_>>())
}
