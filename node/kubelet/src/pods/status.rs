//! A pod's status from what the runtime has; pure. Words and rules are Kubernetes'.

use std::net::IpAddr;

use coracle_cri_api::v1::{ContainerState, ContainerStatus};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{self, Memory};
use crate::cri::Observed;

/// The status to write; lists are whole.
pub fn of(pod: &Pod, observed: &Observed, memory: &Memory, node_ip: IpAddr, now: Timestamp) -> Value {
    let Some(spec) = &pod.spec else { return json!({}) };
    let inits = spec.init_containers.as_deref().unwrap_or_default();
    let initialized = plan::initialized(spec, observed, memory);
    let statuses: Vec<Value> =
        spec.containers.iter().map(|one| container(one, observed, memory, initialized)).collect();
    let phase = phase(pod, observed, initialized);
    let unready: Vec<&str> = spec
        .containers
        .iter()
        .zip(&statuses)
        .filter(|(_, status)| status["ready"] != true)
        .map(|(one, _)| one.name.as_str())
        .collect();
    let before = pod.status.as_ref();
    let mut status = json!({
        "phase": phase,
        "conditions": conditions(pod, observed, phase, initialized, &unready, now),
        "hostIP": node_ip.to_string(),
        "hostIPs": [{"ip": node_ip.to_string()}],
        "startTime": seconds(before.and_then(|s| s.start_time.as_ref()).map_or(now, |time| time.0)),
        "containerStatuses": statuses,
        "observedGeneration": pod.metadata.generation,
    });
    if !inits.is_empty() {
        let statuses: Vec<Value> = inits.iter().map(|one| init(one, observed, memory)).collect();
        status["initContainerStatuses"] = json!(statuses);
    }
    if let Some(ip) = observed.ip() {
        status["podIP"] = json!(ip);
        status["podIPs"] = json!([{"ip": ip}]);
    }
    status
}

/// RFC 3339 in whole seconds, as metav1.Time is written.
pub fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn from_ns(ns: i64) -> Value {
    Timestamp::from_nanosecond(i128::from(ns)).map_or(Value::Null, |time| json!(seconds(time)))
}

fn phase(pod: &Pod, observed: &Observed, initialized: bool) -> &'static str {
    let Some(spec) = &pod.spec else { return "Pending" };
    if plan::finished(spec, observed) && !observed.containers.is_empty() {
        let inits = spec.init_containers.iter().flatten().filter(|one| !plan::is_sidecar(one));
        let mut ended = spec.containers.iter().chain(inits).filter_map(|one| observed.latest(&one.name));
        return if ended.any(|one| one.exit_code != 0) { "Failed" } else { "Succeeded" };
    }
    let started = spec.containers.iter().all(|one| observed.latest(&one.name).is_some());
    if initialized && started { "Running" } else { "Pending" }
}

fn conditions(
    pod: &Pod,
    observed: &Observed,
    phase: &str,
    initialized: bool,
    unready: &[&str],
    now: Timestamp,
) -> Vec<Value> {
    let before = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let condition = |kind: &str, holds: bool, reason: Option<&str>, message: Option<String>| {
        let status = if holds { "True" } else { "False" };
        let same = before.iter().find(|old| old.type_ == kind && old.status == status);
        let since = same.and_then(|old| old.last_transition_time.as_ref()).map_or(now, |time| time.0);
        json!({
            "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": seconds(since),
            "observedGeneration": pod.metadata.generation, "reason": reason, "message": message,
        })
    };
    let ended = phase == "Succeeded" || phase == "Failed";
    let reason = (!unready.is_empty()).then_some(match phase {
        "Succeeded" => "PodCompleted",
        "Failed" => "PodFailed",
        _ => "ContainersNotReady",
    });
    let message = (!ended && !unready.is_empty())
        .then(|| format!("containers with unready status: [{}]", unready.join(" ")));
    let mut all = vec![
        condition("PodReadyToStartContainers", observed.ready_sandbox().is_some(), None, None),
        condition("Initialized", initialized, (!initialized).then_some("ContainersNotInitialized"), None),
        condition("Ready", unready.is_empty(), reason, message.clone()),
        condition("ContainersReady", unready.is_empty(), reason, message),
    ];
    // Conditions of others, such as the scheduler's, stay.
    let others: Vec<Value> = before
        .iter()
        .filter(|old| !all.iter().any(|one| one["type"] == *old.type_))
        .filter_map(|old| serde_json::to_value(old).ok())
        .collect();
    all.extend(others);
    if !all.iter().any(|one| one["type"] == "PodScheduled") {
        all.push(condition("PodScheduled", true, None, None));
    }
    for one in &mut all {
        if let Some(fields) = one.as_object_mut() {
            fields.retain(|key, value| !value.is_null() || key == "lastProbeTime");
        }
    }
    all
}

fn container(spec: &Container, observed: &Observed, memory: &Memory, initialized: bool) -> Value {
    let waiting = if initialized { "ContainerCreating" } else { "PodInitializing" };
    let mut value = base(spec, observed, memory, waiting);
    let running = observed.latest(&spec.name).filter(|one| one.state() == ContainerState::ContainerRunning);
    let known = |map: &std::collections::HashMap<String, bool>, unprobed: bool| {
        running.is_some_and(|one| map.get(&one.id).copied().unwrap_or(unprobed))
    };
    let started = known(&memory.started, spec.startup_probe.is_none());
    value["started"] = json!(started);
    value["ready"] = json!(started && known(&memory.ready, spec.readiness_probe.is_none()));
    value
}

fn init(spec: &Container, observed: &Observed, memory: &Memory) -> Value {
    let mut value = base(spec, observed, memory, "PodInitializing");
    let latest = observed.latest(&spec.name);
    let running = latest.filter(|one| one.state() == ContainerState::ContainerRunning);
    let ready = if plan::is_sidecar(spec) {
        running
            .is_some_and(|one| memory.ready.get(&one.id).copied().unwrap_or(spec.readiness_probe.is_none()))
    } else {
        latest.is_some_and(|one| one.state() == ContainerState::ContainerExited && one.exit_code == 0)
    };
    value["ready"] = json!(ready);
    value["started"] = json!(running.is_some());
    value
}

fn base(spec: &Container, observed: &Observed, memory: &Memory, waiting: &str) -> Value {
    let latest = observed.latest(&spec.name);
    let blocked = memory.waiting.get(&spec.name).or(memory.blocked.as_ref());
    let mut state = json!({"waiting": {"reason": waiting}});
    let mut last = observed.previous(&spec.name).map_or_else(|| json!({}), terminated);
    match latest.map(|one| (one.state(), one)) {
        Some((ContainerState::ContainerRunning, one)) => {
            state = json!({"running": {"startedAt": from_ns(one.started_at)}});
        }
        Some((ContainerState::ContainerExited, one)) => state = terminated(one),
        _ => {}
    }
    let running = latest.is_some_and(|one| one.state() == ContainerState::ContainerRunning);
    if let Some((reason, message)) = blocked.filter(|_| !running) {
        if let Some(ended) = latest.filter(|one| one.state() == ContainerState::ContainerExited) {
            last = terminated(ended);
        }
        state = json!({"waiting": {"reason": reason, "message": message}});
    }
    json!({
        "name": spec.name,
        "image": spec.image,
        "imageID": latest.map(|one| one.image_ref.as_str()).unwrap_or_default(),
        "containerID": latest.map(|one| format!("coracle://{}", one.id)).unwrap_or_default(),
        "restartCount": latest.and_then(|one| one.metadata.as_ref()).map_or(0, |meta| meta.attempt),
        "state": state,
        "lastState": last,
    })
}

fn terminated(one: &ContainerStatus) -> Value {
    let default = if one.exit_code == 0 { "Completed" } else { "Error" };
    let mut value = json!({
        "exitCode": one.exit_code,
        "reason": if one.reason.is_empty() { default } else { &one.reason },
        "startedAt": from_ns(one.started_at),
        "finishedAt": from_ns(one.finished_at),
        "containerID": format!("coracle://{}", one.id),
    });
    if !one.message.is_empty() {
        value["message"] = json!(one.message);
    }
    json!({"terminated": value})
}
