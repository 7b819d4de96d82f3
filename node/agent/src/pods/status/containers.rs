//! The status of one container of a pod.

use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use crate::pods::backoff::Backoff;
use crate::pods::plan::{self, Input, backoff_message};
use crate::pods::state::{Container, Fate, Phase, init_containers, is_sidecar, starts_again};

/// How a status names a container: with the runtime that has it, `containerd://...`.
fn id(input: Input<'_>, container: &Container) -> String {
    format!("{}://{}", input.state.runtime, container.id)
}

/// The status of one container; `init` says in which list it stands.
pub fn status(input: Input<'_>, spec: &Spec, init: bool) -> ContainerStatus {
    let old = old_status(input, &spec.name);
    let newest = input.state.newest(&spec.name);
    let mut status = ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        ..Default::default()
    };
    match newest {
        Some(container) => from_container(input, spec, init, container, &mut status),
        None => from_nothing(input, spec, init, old, &mut status),
    }
    if status.last_state.is_none() && status.restart_count > 0 {
        status.last_state = old.and_then(|o| o.last_state.clone());
    }
    // The API shows it where there is none, too: without it every status would differ from what was written.
    status.last_state.get_or_insert_default();
    status
}

/// What the API last knew of a container.
pub fn old_status<'a>(input: Input<'a>, name: &str) -> Option<&'a ContainerStatus> {
    let status = input.pod.status.as_ref()?;
    let all =
        status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let all = all.chain(status.ephemeral_container_statuses.iter().flatten());
    all.into_iter().find(|s| s.name == name)
}

fn from_container(
    input: Input<'_>,
    spec: &Spec,
    init: bool,
    container: &Container,
    status: &mut ContainerStatus,
) {
    status.container_id = Some(id(input, container));
    status.image_id = container.image_ref.clone();
    status.restart_count = i32::try_from(container.attempt).unwrap_or(i32::MAX);
    status.stop_signal = Some(container.stop_signal.clone()).filter(|s| !s.is_empty());
    status.started = Some(false);
    let previous = input.state.previous(&spec.name).filter(|p| p.phase == Phase::Exited);
    status.last_state = previous.map(|previous| terminated(input, previous));
    match container.phase {
        Phase::Running => {
            status.resources = input.memory.resources.get(&container.id).cloned();
            status.allocated_resources = status.resources.as_ref().and_then(|r| r.requests.clone());
            let started = plan::started(spec, container, input.memory);
            status.started = Some(started);
            status.ready = started && ready(input, spec, container);
            status.state = Some(ContainerState {
                running: Some(ContainerStateRunning { started_at: time(container.started_at) }),
                ..Default::default()
            });
        }
        Phase::Exited => {
            status.ready = init && !is_sidecar(spec) && container.exit_code == 0;
            let dead = terminated(input, container);
            match why_waiting(input, spec, container) {
                Some(why) => {
                    status.last_state = Some(dead);
                    status.state = Some(why);
                }
                None => status.state = Some(dead),
            }
        }
        Phase::Created | Phase::Unknown => {
            let (reason, message) = reason_to_wait(input, spec, init);
            status.state = Some(waiting(&reason, message));
        }
    }
}

fn from_nothing(
    input: Input<'_>,
    spec: &Spec,
    init: bool,
    old: Option<&ContainerStatus>,
    status: &mut ContainerStatus,
) {
    status.started = Some(false);
    if let Some(old) = old {
        status.restart_count = old.restart_count;
        let dead = old.state.as_ref().filter(|s| s.terminated.is_some());
        if let Some(dead) = dead {
            // The runtime forgot it (its records were lost, or the pod is on its way out): the API's word stands.
            if input.fate != Fate::Runs || plan::ended(input) {
                *status = old.clone();
                return;
            }
            status.last_state = Some(dead.clone());
        } else if input.fate != Fate::Runs && old.container_id.is_some() {
            *status = ContainerStatus { ready: false, started: Some(false), ..old.clone() };
            return;
        }
        status.container_id = old.container_id.clone();
        status.image_id = old.image_id.clone();
    }
    let (reason, message) = reason_to_wait(input, spec, init);
    status.state = Some(waiting(&reason, message));
}

/// Why a container that ended is waiting, or `None` when it just ended.
fn why_waiting(input: Input<'_>, spec: &Spec, container: &Container) -> Option<ContainerState> {
    if input.fate != Fate::Runs || plan::ended(input) || !starts_again(input.pod, spec, container) {
        return None;
    }
    if let Some(why) = input.memory.waiting.get(&spec.name) {
        return Some(waiting(&why.reason, Some(why.message.clone())));
    }
    let held = Backoff::after(input.memory.backoff.get(&spec.name).copied(), container)?;
    if held.until(container) <= input.now {
        return None;
    }
    Some(waiting("CrashLoopBackOff", Some(backoff_message(input.pod, &spec.name, held))))
}

fn reason_to_wait(input: Input<'_>, spec: &Spec, init: bool) -> (String, Option<String>) {
    if let Some(why) = input.memory.waiting.get(&spec.name) {
        return (why.reason.clone(), Some(why.message.clone()));
    }
    let has_init = !init_containers(input.pod).is_empty();
    let initial = if init || has_init { "PodInitializing" } else { "ContainerCreating" };
    (initial.to_owned(), None)
}

fn ready(input: Input<'_>, spec: &Spec, container: &Container) -> bool {
    if spec.readiness_probe.is_none() {
        return true;
    }
    if let Some(ready) = input.memory.probed.get(&container.id).and_then(|p| p.ready) {
        return ready;
    }
    // A new agent has no results yet: what the API says of this very container holds until the first probe.
    let id = id(input, container);
    old_status(input, &spec.name)
        .is_some_and(|old| old.ready && old.container_id.as_deref() == Some(id.as_str()))
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    let message = message.filter(|m| !m.is_empty());
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..Default::default()
    }
}

fn terminated(input: Input<'_>, container: &Container) -> ContainerState {
    let reason = match (container.reason.as_str(), container.exit_code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(id(input, container)),
            exit_code: container.exit_code,
            reason: Some(reason.to_owned()),
            message: (!container.message.is_empty()).then(|| container.message.clone()),
            started_at: time(container.started_at),
            finished_at: time(container.finished_at),
            signal: None,
        }),
        ..Default::default()
    }
}

fn time(nanoseconds: i64) -> Option<Time> {
    if nanoseconds <= 0 {
        return Some(Time(Timestamp::UNIX_EPOCH));
    }
    Timestamp::from_second(nanoseconds / 1_000_000_000).ok().map(Time)
}
