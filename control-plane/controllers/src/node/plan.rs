//! What a node's silence means: conditions, taints, and which of its pods must go. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use crate::events::{api_time, whole_second};
use crate::placement::tolerates;
use crate::view::{Meta, Node, Pod, condition};

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// The conditions to write when a node has been silent too long; none when they are written already.
pub fn silenced(node: &Node, now: Timestamp) -> Vec<Value> {
    let kinds = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
    let changed = kinds.into_iter().filter(|kind| {
        let there = condition(&node.status.conditions, kind);
        // Only Ready is made up; the others are there when the agent reports them.
        there.map_or(*kind == "Ready", |c| c.status != "Unknown")
    });
    let rows = changed.map(|kind| {
        let there = condition(&node.status.conditions, kind).is_some();
        let (reason, message) = match there {
            true => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            false => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
        };
        json!({ "type": kind, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": api_time(now) })
    });
    rows.collect()
}

/// The taints that a node should have for its Ready condition; None when it has them. `may_evict` says whether the taint
/// that moves its pods may be set now: its zone's pace decides.
pub fn taints(node: &Node, may_evict: &mut dyn FnMut() -> bool, now: Timestamp) -> Option<Vec<Taint>> {
    let ready = condition(&node.status.conditions, "Ready").map(|c| c.status.as_str());
    let key = match ready {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        Some(_) => Some(NOT_READY),
        // A node that has not reported yet keeps what it was registered with.
        None => return None,
    };
    let is_ours = |t: &&Taint| t.key == UNREACHABLE || t.key == NOT_READY;
    let mut wanted: Vec<Taint> = node.spec.taints.iter().filter(|t| !is_ours(t)).cloned().collect();
    for effect in ["NoSchedule", "NoExecute"] {
        let Some(key) = key else { break };
        let there = node.spec.taints.iter().find(|t| t.key == key && t.effect == effect);
        // One that changes from one of ours to the other keeps its place.
        let moved = || node.spec.taints.iter().any(|t| is_ours(&t) && t.effect == effect);
        if there.is_none() && effect == "NoExecute" && !moved() && !may_evict() {
            continue;
        }
        wanted.push(there.cloned().unwrap_or_else(|| Taint {
            key: key.into(),
            effect: effect.into(),
            time_added: Some(Time(whole_second(now))),
            value: None,
        }));
    }
    let same = wanted.len() == node.spec.taints.len()
        && wanted.iter().all(|w| node.spec.taints.iter().any(|t| t.key == w.key && t.effect == w.effect));
    if same { None } else { Some(wanted) }
}

/// How long a pod may stay on a node with these taints: None for ever, zero not at all.
pub fn stays(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Duration> {
    let mut shortest: Option<Duration> = None;
    for taint in taints.iter().filter(|t| t.effect == "NoExecute") {
        let tolerations: Vec<&Toleration> =
            pod.spec.tolerations.iter().filter(|t| tolerates(t, taint)).collect();
        if tolerations.is_empty() {
            return Some(Duration::ZERO);
        }
        let Some(seconds) = tolerations.iter().filter_map(|t| t.toleration_seconds).min() else { continue };
        let since = taint.time_added.as_ref().map_or(now, |t| t.0);
        let left = since.as_millisecond() + seconds.max(0).saturating_mul(1000) - now.as_millisecond();
        let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
        shortest = Some(shortest.map_or(left, |s| s.min(left)));
    }
    shortest
}

/// The patch of a pod's status when its node is silent; None when the pod is not ready anyway.
pub fn unready(pod: &Pod, now: Timestamp) -> Option<Value> {
    if !pod.is_ready() {
        return None;
    }
    Some(json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": [{
        "type": "Ready", "status": "False", "reason": "NodeNotReady", "message": "Node is not ready",
        "lastTransitionTime": api_time(now),
    }] } }))
}
