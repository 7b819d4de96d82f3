//! Pure: the status of a pod, in Kubernetes' reasons and words.

use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::plan::Input;
use super::state::{Fate, ephemeral_containers, init_containers, is_sidecar, main_containers};

pub mod containers;
pub mod phase;

/// Builds the status that the pod should have.
pub fn status(input: Input<'_>, node_ip: &str) -> PodStatus {
    let old = input.pod.status.clone().unwrap_or_default();
    let inits: Vec<ContainerStatus> =
        init_containers(input.pod).iter().map(|spec| containers::status(input, spec, true)).collect();
    let mains: Vec<ContainerStatus> =
        main_containers(input.pod).iter().map(|spec| containers::status(input, spec, false)).collect();
    let ephemeral: Vec<ContainerStatus> =
        ephemeral_containers(input.pod).iter().map(|spec| containers::status(input, spec, false)).collect();
    let (phase, reason, message) = match (&input.memory.refused, old.phase.as_deref()) {
        (_, Some(end @ ("Succeeded" | "Failed"))) => {
            (end.to_owned(), old.reason.clone(), old.message.clone())
        }
        _ if input.memory.failed.is_some() => {
            let failed = input.memory.failed.clone().unwrap_or_default();
            ("Failed".to_owned(), Some(failed.reason), Some(failed.message))
        }
        _ if super::plan::deadline(input).is_some_and(|at| at <= input.now) => {
            let message = "Pod was active on the node longer than the specified deadline";
            ("Failed".to_owned(), Some("DeadlineExceeded".to_owned()), Some(message.to_owned()))
        }
        (Some((reason, message)), _) => ("Pending".to_owned(), Some(reason.clone()), Some(message.clone())),
        _ => (phase::phase(input, &inits, &mains).to_owned(), None, None),
    };
    let ips = pod_ips(input, &old);
    // A pod that was refused never had containers: it shows why, not what they wait for.
    let refused = old.container_statuses.is_none() && input.memory.refused.is_some();
    let conditions = conditions(input, &old, phase.as_str(), &inits, &mains, !ips.is_empty());
    PodStatus {
        conditions: Some(conditions),
        container_statuses: (!refused).then_some(mains),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        init_container_statuses: (!inits.is_empty() && !refused).then_some(inits),
        host_ip: Some(node_ip.to_owned()),
        host_ips: Some(vec![HostIP { ip: node_ip.to_owned() }]),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: old.start_time.clone().or(Some(Time(input.now))),
        observed_generation: input.pod.metadata.generation,
        phase: Some(phase),
        reason,
        message,
        ..old
    }
}

/// The sandbox's addresses; an ended pod keeps those it had.
fn pod_ips(input: Input<'_>, old: &PodStatus) -> Vec<String> {
    let live = input.state.sandbox().filter(|s| s.ready || input.fate != Fate::Runs);
    match live {
        Some(sandbox) if !sandbox.ips.is_empty() => sandbox.ips.clone(),
        _ => old.pod_ips.iter().flatten().map(|p| p.ip.clone()).collect(),
    }
}

/// Set while a resize cannot be done, or fails.
const RESIZES: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

fn verdict(kind: &'static str, holds: bool) -> Verdict {
    Verdict { kind, holds, reason: None, message: None }
}

fn conditions(
    input: Input<'_>,
    old: &PodStatus,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
    has_ip: bool,
) -> Vec<PodCondition> {
    let ended = matches!(phase, "Succeeded" | "Failed");
    let sandbox = has_ip && !ended && input.state.sandbox().is_some_and(|s| s.ready);
    let containers = containers_ready(input.pod, phase, mains, inits);
    let ready = ready(input, old, &containers);
    let verdicts = [
        verdict("PodReadyToStartContainers", sandbox),
        initialized(input, phase, inits, mains),
        ready,
        containers,
        verdict("PodScheduled", true),
    ];
    let existing = old.conditions.clone().unwrap_or_default();
    let mut conditions: Vec<PodCondition> =
        verdicts.into_iter().map(|v| condition(v, &existing, input.pod, input.now)).collect();
    let refused = input.memory.unresized.as_ref().filter(|_| !ended);
    let resize = refused.map(|why| Verdict {
        reason: Some(why.reason),
        message: Some(why.message.clone()),
        ..verdict(RESIZES[usize::from(why.reason == "Error")], true)
    });
    let disrupted = input.memory.failed.as_ref().filter(|f| f.disrupted).map(|failed| Verdict {
        reason: Some("TerminationByKubelet"),
        message: Some(failed.message.clone()),
        ..verdict("DisruptionTarget", true)
    });
    conditions
        .extend(resize.into_iter().chain(disrupted).map(|v| condition(v, &existing, input.pod, input.now)));
    // Conditions of others (readiness gates, the disruption controller) stay as they are.
    let ours: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    conditions.extend(
        existing.into_iter().filter(|c| !ours.contains(&c.type_) && !RESIZES.contains(&c.type_.as_str())),
    );
    conditions
}

fn condition(verdict: Verdict, existing: &[PodCondition], pod: &Pod, now: Timestamp) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let before = existing.iter().find(|c| c.type_ == verdict.kind && c.status == status);
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: before.and_then(|c| c.last_transition_time.clone()).or(Some(Time(now))),
        last_probe_time: None,
        observed_generation: pod.metadata.generation,
    }
}

fn initialized(
    input: Input<'_>,
    phase: &str,
    inits: &[ContainerStatus],
    mains: &[ContainerStatus],
) -> Verdict {
    if phase == "Succeeded" {
        return Verdict { reason: Some("PodCompleted"), ..verdict("Initialized", true) };
    }
    let mains_ran = mains.iter().any(|s| {
        s.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
            || s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
    });
    let incomplete: Vec<&str> = init_containers(input.pod)
        .iter()
        .zip(inits)
        .filter(|(spec, s)| !phase::init_done(spec, s))
        .map(|(_, s)| s.name.as_str())
        .collect();
    if mains_ran || incomplete.is_empty() {
        return verdict("Initialized", true);
    }
    Verdict {
        reason: Some("ContainersNotInitialized"),
        message: Some(format!("containers with incomplete status: [{}]", incomplete.join(" "))),
        ..verdict("Initialized", false)
    }
}

fn containers_ready(pod: &Pod, phase: &str, mains: &[ContainerStatus], inits: &[ContainerStatus]) -> Verdict {
    let kind = "ContainersReady";
    match phase {
        "Succeeded" => return Verdict { reason: Some("PodCompleted"), ..verdict(kind, false) },
        "Failed" => return Verdict { reason: Some("PodFailed"), ..verdict(kind, false) },
        _ => {}
    }
    // Sidecars count; init containers that end do not.
    let sidecars = init_containers(pod).iter().zip(inits).filter(|(spec, _)| is_sidecar(spec));
    let all = sidecars.map(|(_, status)| status).chain(mains);
    let unready: Vec<&str> = all.filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    if unready.is_empty() {
        return verdict(kind, true);
    }
    Verdict {
        reason: Some("ContainersNotReady"),
        message: Some(format!("containers with unready status: [{}]", unready.join(" "))),
        ..verdict(kind, false)
    }
}

fn ready(input: Input<'_>, old: &PodStatus, containers: &Verdict) -> Verdict {
    if !containers.holds {
        return Verdict {
            kind: "Ready",
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let gates = input.pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let of = |kind: &str| old.conditions.iter().flatten().find(|c| c.type_ == kind);
    let unready: Vec<String> = gates
        .iter()
        .map(|gate| gate.condition_type.as_str())
        .filter_map(|kind| match of(kind) {
            None => Some(format!("corresponding condition of pod readiness gate {kind:?} does not exist.")),
            Some(c) if c.status != "True" => {
                Some(format!("the status of pod readiness gate {kind:?} is not \"True\", but {}", c.status))
            }
            Some(_) => None,
        })
        .collect();
    if unready.is_empty() {
        return verdict("Ready", true);
    }
    Verdict {
        reason: Some("ReadinessGatesNotReady"),
        message: Some(unready.join(", ")),
        ..verdict("Ready", false)
    }
}

#[cfg(test)]
mod tests;
