//! From a StatefulSet and its pods to the next step. Pure.
//!
//! In order: pods come lowest ordinal first and go highest first, one at a time, each waiting for its neighbour; in parallel:
//! all at once. An update replaces pods from the highest ordinal down to the partition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::identity::ordinal;
use crate::deployment::limits::scaled;
use crate::history::REVISION_HASH;
use crate::pod_control::{Victim, victim};
use crate::view::{Meta, Pod, StatefulSet, StatefulSetStatus};

/// Everything that a plan depends on.
pub struct State<'a> {
    pub set: &'a StatefulSet,
    /// The pods that it owns.
    pub pods: &'a [Arc<Pod>],
    /// Names of the revision that pods below the partition keep, and of the present one.
    pub current: &'a str,
    pub update: &'a str,
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Make the pod of an ordinal, of the present revision or of the one before.
    Create { ordinal: i64, update: bool },
    /// Delete a pod, to be replaced.
    Replace(Victim),
    /// Delete a pod that is one too many; its claims may go with it.
    ScaleDown(Victim),
}

/// The actions and the new status.
pub fn plan(state: &State<'_>) -> (Vec<Action>, StatefulSetStatus, Option<Duration>) {
    let set = state.set;
    let own = state.pods.iter().filter_map(|p| Some((ordinal(set, p)?, p)));
    let pods: BTreeMap<i64, &Arc<Pod>> = own.collect();
    let status = status(state, &pods);
    if set.is_terminating() {
        return (Vec::new(), status, None);
    }
    let mut actions = Vec::new();
    if scale(state, &pods, &mut actions) && set.spec.update_strategy.type_ != "OnDelete" {
        update(state, &pods, &mut actions);
    }
    (actions, status, next_available(state, &pods))
}

fn is_available(state: &State<'_>, pod: &Pod) -> bool {
    !pod.is_terminating() && pod.is_available(state.set.spec.min_ready_seconds, state.now)
}

fn revision(pod: &Pod) -> &str {
    pod.label(REVISION_HASH).unwrap_or_default()
}

fn partition(set: &StatefulSet) -> i64 {
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    rolling.and_then(|r| r.partition).unwrap_or(0)
}

// Makes what is missing, deletes what is too much. True when the update may go on.
fn scale(state: &State<'_>, pods: &BTreeMap<i64, &Arc<Pod>>, actions: &mut Vec<Action>) -> bool {
    let set = state.set;
    let ordered = set.spec.pod_management_policy.as_deref() != Some("Parallel");
    let wanted = set.start()..set.start() + set.replicas();
    let rolling = set.spec.update_strategy.type_ != "OnDelete";
    for ordinal in wanted.clone() {
        match pods.get(&ordinal) {
            None => {
                let update = !(rolling && ordinal < set.start() + partition(set));
                actions.push(Action::Create { ordinal, update });
            }
            Some(pod) if pod.is_finished() && !pod.is_terminating() => {
                actions.push(Action::Replace(victim(pod)));
            }
            Some(pod) if !ordered || is_available(state, pod) => continue,
            Some(_) => return false,
        }
        if ordered {
            return false;
        }
    }
    let condemned: Vec<&Arc<Pod>> =
        pods.iter().rev().filter(|(o, _)| !wanted.contains(o)).map(|(_, p)| *p).collect();
    if ordered && condemned.iter().any(|p| p.is_terminating()) {
        return false;
    }
    let mut going = condemned.into_iter().filter(|p| !p.is_terminating());
    if ordered {
        let Some(pod) = going.next() else { return true };
        actions.push(Action::ScaleDown(victim(pod)));
        return false;
    }
    actions.extend(going.map(|p| Action::ScaleDown(victim(p))));
    true
}

// Replaces pods of older revisions, highest ordinal first, while few enough are unavailable.
fn update(state: &State<'_>, pods: &BTreeMap<i64, &Arc<Pod>>, actions: &mut Vec<Action>) {
    let set = state.set;
    let rolling = set.spec.update_strategy.rolling_update.as_ref();
    let limit = rolling.and_then(|r| r.max_unavailable.as_ref());
    let limit = limit.map_or(1, |l| scaled(l, set.replicas(), true).max(1));
    let first = set.start() + partition(set);
    let wanted = set.start()..set.start() + set.replicas();
    let missing = wanted.clone().filter(|o| pods.get(o).is_none_or(|p| !is_available(state, p))).count();
    let mut left = limit - i64::try_from(missing).unwrap_or(i64::MAX);
    for (_, pod) in pods.iter().rev().filter(|(o, _)| wanted.contains(o) && **o >= first) {
        if pod.is_terminating() || revision(pod) == state.update {
            continue;
        }
        // A pod that is not available costs nothing to replace, but its place in the order counts.
        let broken = !is_available(state, pod);
        if !broken && left <= 0 {
            return;
        }
        actions.push(Action::Replace(victim(pod)));
        if !broken {
            left -= 1;
        }
        if left <= 0 {
            return;
        }
    }
}

fn count(pods: &BTreeMap<i64, &Arc<Pod>>, is: impl Fn(&Pod) -> bool) -> i64 {
    i64::try_from(pods.values().filter(|p| is(p)).count()).unwrap_or(i64::MAX)
}

fn status(state: &State<'_>, pods: &BTreeMap<i64, &Arc<Pod>>) -> StatefulSetStatus {
    let set = state.set;
    let of = |name: &str| count(pods, |p| !p.is_terminating() && revision(p) == name);
    let mut status = StatefulSetStatus {
        observed_generation: set.metadata.generation.unwrap_or(0),
        replicas: count(pods, |_| true),
        ready_replicas: count(pods, |p| p.is_ready() && p.phase() == "Running"),
        available_replicas: count(pods, |p| is_available(state, p)),
        current_replicas: of(state.current),
        updated_replicas: of(state.update),
        current_revision: Some(state.current.into()),
        update_revision: Some(state.update.into()),
        collision_count: Some(set.status.collision_count.unwrap_or(0)),
    };
    let wanted = set.replicas();
    let all = [status.updated_replicas, status.ready_replicas, status.replicas];
    if set.spec.update_strategy.type_ != "OnDelete" && all.iter().all(|n| *n == wanted) {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
    status
}

// When the next pod that is ready will have been so long enough.
fn next_available(state: &State<'_>, pods: &BTreeMap<i64, &Arc<Pod>>) -> Option<Duration> {
    let seconds = state.set.spec.min_ready_seconds;
    let waiting = pods.values().filter(|p| !is_available(state, p) && !p.is_terminating());
    let left = waiting.filter_map(|p| {
        let at = p.ready_since()?.as_millisecond() + seconds * 1000;
        u64::try_from(at - state.now.as_millisecond()).ok()
    });
    left.min().map(|ms| Duration::from_millis(ms + 1))
}
