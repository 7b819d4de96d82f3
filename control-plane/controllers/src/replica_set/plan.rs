//! From a ReplicaSet and its pods to what must be done. Pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pod_control::{Victim, victim};
use crate::view::{Condition, Meta, Pod, ReplicaSet, ReplicaSetStatus, condition};

/// The most pods that are created or deleted in one go.
pub const BURST: usize = 500;

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Step {
    Nothing,
    /// Create so many pods.
    Create(usize),
    /// Delete these pods.
    Delete(Vec<Victim>),
}

/// Everything that a plan depends on.
pub struct State<'a> {
    pub rs: &'a ReplicaSet,
    /// Pods that it owns.
    pub own: &'a [Arc<Pod>],
    /// Pods of the other ReplicaSets of the same owner, to spread deletions over nodes.
    pub related: &'a [Arc<Pod>],
    /// Whether the cache has seen all that was done before.
    pub settled: bool,
    pub now: Timestamp,
}

/// What brings the number of pods nearer to what is wanted.
pub fn plan(state: &State<'_>) -> Step {
    if !state.settled || state.rs.is_terminating() {
        return Step::Nothing;
    }
    let active: Vec<Arc<Pod>> = state.own.iter().filter(|p| p.is_active()).cloned().collect();
    let wanted = usize::try_from(state.rs.replicas()).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Less => Step::Create((wanted - active.len()).min(BURST)),
        Ordering::Equal => Step::Nothing,
        Ordering::Greater => {
            let count = (active.len() - wanted).min(BURST);
            Step::Delete(victims(active, state.related, count, state.now))
        }
    }
}

fn victims(mut pods: Vec<Arc<Pod>>, related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Victim> {
    if count < pods.len() {
        let mut on_node: HashMap<&str, usize> = HashMap::new();
        for pod in related.iter().filter(|p| p.is_active()) {
            *on_node.entry(pod.node().unwrap_or_default()).or_default() += 1;
        }
        pods.sort_by(|a, b| deletion_order(a, b, &on_node, now));
    }
    pods.iter().take(count).map(|p| victim(p)).collect()
}

/// Kubernetes' ranking: what comes first is deleted first. Unassigned before assigned, pending before running, not ready
/// before ready, lower deletion cost, more related pods on the node, shorter ready, more restarts, younger.
fn deletion_order(a: &Pod, b: &Pod, on_node: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let phase = |p: &Pod| match p.phase() {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |p: &Pod| {
        let cost = p.annotation("controller.kubernetes.io/pod-deletion-cost");
        cost.and_then(|c| c.parse::<i32>().ok()).unwrap_or(0)
    };
    let rank = |p: &Pod| on_node.get(p.node().unwrap_or_default()).copied().unwrap_or(0);
    let restarts = |p: &Pod| p.status.container_statuses.iter().map(|c| c.restart_count).max().unwrap_or(0);
    a.node()
        .is_some()
        .cmp(&b.node().is_some())
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| rank(b).cmp(&rank(a)))
        .then_with(|| age(a.ready_since(), now).cmp(&age(b.ready_since(), now)))
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| age(a.created(), now).cmp(&age(b.created(), now)))
        .then_with(|| a.uid().cmp(b.uid()))
}

// Ages are compared by their order of magnitude, so that which of similar pods goes is not always the youngest.
fn age(since: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(since) = since else { return -2 };
    let seconds = now.as_second() - since.as_second();
    if seconds <= 0 { -1 } else { i64::from(seconds.ilog2()) }
}

/// The status that follows from its pods. `failure` is the reason and the words of a create or delete that failed.
pub fn status(
    rs: &ReplicaSet,
    own: &[Arc<Pod>],
    failure: Option<(&str, &str)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let active = || own.iter().filter(|p| p.is_active());
    let labels = rs.spec.template.pointer("/metadata/labels").and_then(serde_json::Value::as_object);
    let fully = |p: &&Arc<Pod>| labels.into_iter().flatten().all(|(k, v)| p.label(k) == v.as_str());
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let mut conditions: Vec<Condition> = rs.status.conditions.clone();
    match failure {
        Some((reason, message)) if condition(&conditions, "ReplicaFailure").is_none() => {
            conditions.push(Condition {
                type_: "ReplicaFailure".into(),
                status: "True".into(),
                reason: reason.into(),
                message: message.into(),
                last_transition_time: Some(Time(crate::events::whole_second(now))),
                ..Condition::default()
            })
        }
        Some(_) => {}
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    ReplicaSetStatus {
        replicas: count(active().count()),
        fully_labeled_replicas: count(active().filter(fully).count()),
        ready_replicas: count(active().filter(|p| p.is_ready()).count()),
        available_replicas: count(
            active().filter(|p| p.is_available(rs.spec.min_ready_seconds, now)).count(),
        ),
        terminating_replicas: Some(count(
            own.iter().filter(|p| p.is_terminating() && !p.is_finished()).count(),
        )),
        observed_generation: rs.metadata.generation.unwrap_or(0),
        conditions,
    }
}

/// When a ready pod next becomes available.
pub fn next_available(rs: &ReplicaSet, own: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let waits = own.iter().filter(|p| p.is_active()).filter_map(|p| {
        let ready_ms = now.as_millisecond() - p.ready_since()?.as_millisecond();
        u64::try_from(rs.spec.min_ready_seconds * 1000 - ready_ms).ok().filter(|ms| *ms > 0)
    });
    waits.min().map(Duration::from_millis)
}
