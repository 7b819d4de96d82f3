//! The runtime's answers as the agent has them.

use coracle_cri_api::annotation;
use coracle_cri_api::v1 as cri;
use tonic::Status;

use crate::pods::state::{Container, Phase, Sandbox};

/// What was answered, or `None` of what is not there (any more).
pub fn unless_absent<T>(result: Result<tonic::Response<T>, Status>) -> Result<Option<T>, Status> {
    match result {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}

/// That it is gone is what removing and stopping want to hear.
pub fn absent_is_fine<T>(result: Result<tonic::Response<T>, Status>) -> Result<(), Status> {
    unless_absent(result).map(|_| ())
}

pub fn sandbox(listed: cri::PodSandbox, status: Option<cri::PodSandboxStatus>) -> Sandbox {
    let network = status.as_ref().and_then(|s| s.network.as_ref());
    let ips = network
        .into_iter()
        .flat_map(|n| std::iter::once(n.ip.clone()).chain(n.additional_ips.iter().map(|a| a.ip.clone())));
    let state = status.as_ref().map_or(listed.state, |s| s.state);
    Sandbox {
        handler: listed.runtime_handler,
        ready: state == cri::PodSandboxState::SandboxReady as i32,
        attempt: listed.metadata.map_or(0, |m| m.attempt),
        linux: listed.annotations.get(annotation::LINUX_CONTAINERS).is_some_and(|v| v == "true"),
        created_at: listed.created_at,
        ips: ips.filter(|ip| !ip.is_empty()).collect(),
        id: listed.id,
    }
}

pub fn container(sandbox: &str, status: cri::ContainerStatus) -> Container {
    let stop_signal = coracle_cri_api::signal::name(status.stop_signal()).unwrap_or_default();
    let metadata = status.metadata.unwrap_or_default();
    Container {
        id: status.id,
        sandbox: sandbox.to_owned(),
        name: metadata.name,
        attempt: metadata.attempt,
        phase: match status.state {
            0 => Phase::Created,
            1 => Phase::Running,
            2 => Phase::Exited,
            _ => Phase::Unknown,
        },
        created_at: status.created_at,
        started_at: status.started_at,
        finished_at: status.finished_at,
        exit_code: status.exit_code,
        reason: status.reason,
        message: status.message,
        image: status.image.map(|i| i.image).unwrap_or_default(),
        image_ref: status.image_ref,
        log_path: status.log_path,
        stop_signal,
        replaced: false,
    }
}
