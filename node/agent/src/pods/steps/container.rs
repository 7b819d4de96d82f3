//! Starting a container: its image, its config, create, start; with the kubelet's Events and reasons.

use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use tonic::Status;

use super::{config, volumes};
use crate::context::Context;
use crate::env;
use crate::images::{self, Policy};
use crate::pods::state::{Phase, PodState};
use crate::volumes::{PodDir, container_mounts};

/// Why a container did not start: the reason and the words of its waiting state.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `ErrImagePull`, `CreateContainerConfigError` ...
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn failure(reason: &'static str, message: impl Into<String>) -> Failure {
    Failure { reason, message: message.into() }
}

/// The words of a gRPC error.
pub fn words(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// Starts one container of a pod in the sandbox that counts.
pub async fn start(
    context: &Context,
    pod: &Pod,
    state: &PodState,
    spec: &Container,
    attempt: u32,
) -> Result<(), Failure> {
    let recorder = &context.recorder;
    let sandbox = state.sandbox().ok_or_else(|| failure("CreateContainerError", "the pod has no sandbox"))?;
    let logs = context.log_directory(pod);
    let sandbox_config = config::sandbox(pod, sandbox.attempt, &logs.to_string_lossy(), &context.dns);
    let image = match image(context, pod, spec, sandbox_config.clone()).await {
        Ok(image) => image,
        Err(error) => {
            recorder.pod(pod, Some(&spec.name), true, "Failed", format!("Error: {}", error.reason));
            return Err(error);
        }
    };
    let made = make_config(context, pod, spec, attempt, &image, sandbox.ips.clone()).await;
    let made = made.map_err(|message| {
        recorder.pod(pod, Some(&spec.name), true, "Failed", format!("Error: {message}"));
        failure("CreateContainerConfigError", message)
    })?;
    // One that was created and never started, by an agent that ended in between, goes first.
    for stale in state.containers.iter().filter(|c| c.name == spec.name && c.phase == Phase::Created) {
        let removed = context.runtime.remove_container(&stale.id).await;
        removed.map_err(|e| failure("CreateContainerError", words(&e)))?;
    }
    let created = context.runtime.create_container(&sandbox.id, made, sandbox_config).await;
    let id = created.map_err(|status| {
        recorder.pod(pod, Some(&spec.name), true, "Failed", format!("Error: {}", status.message()));
        failure("CreateContainerError", status.message())
    })?;
    recorder.pod(pod, Some(&spec.name), false, "Created", format!("Container created: {}", spec.name));
    context.runtime.start_container(&id).await.map_err(|status| {
        recorder.pod(pod, Some(&spec.name), true, "Failed", format!("Error: {}", status.message()));
        failure("RunContainerError", status.message())
    })?;
    recorder.pod(pod, Some(&spec.name), false, "Started", format!("Container started: {}", spec.name));
    Ok(())
}

async fn make_config(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    image: &str,
    pod_ips: Vec<String>,
) -> Result<coracle_cri_api::v1::ContainerConfig, String> {
    let sources = volumes::read(context, pod, env::references(spec)).await.map_err(|e| e.to_string())?;
    let services = context.services.env(pod).await;
    let env =
        env::build(pod, spec, services, &sources, &context.facts(pod_ips)).map_err(|e| e.to_string())?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let dir = PodDir::new(&context.root, uid).ok_or("the pod's uid is not a file name")?;
    let mounts = container_mounts(pod, spec, &dir, &env)?;
    config::container(pod, spec, attempt, image, env, mounts)
}

/// The image of a container, pulled if its policy asks for that.
async fn image(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    sandbox: coracle_cri_api::v1::PodSandboxConfig,
) -> Result<String, Failure> {
    let recorder = &context.recorder;
    let name = spec.image.as_deref().unwrap_or_default();
    let policy = images::policy(spec);
    let present = context.runtime.image(name).await.map_err(|status| {
        let message = format!("Failed to inspect image \"{name}\": {}", words(&status));
        recorder.pod(pod, Some(&spec.name), true, "InspectFailed", message.clone());
        // The name itself is refused, or the runtime is in trouble.
        let reason = if status.code() == tonic::Code::InvalidArgument {
            "InvalidImageName"
        } else {
            "ImageInspectError"
        };
        failure(reason, message)
    })?;
    match (policy, present) {
        (Policy::IfNotPresent | Policy::Never, Some(image)) => {
            let message = format!("Container image \"{name}\" already present on machine");
            recorder.pod(pod, Some(&spec.name), false, "Pulled", message);
            Ok(image.id)
        }
        (Policy::Never, None) => {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            recorder.pod(pod, Some(&spec.name), true, "ErrImageNeverPull", message.clone());
            Err(failure("ErrImageNeverPull", message))
        }
        (Policy::Always, _) | (Policy::IfNotPresent, None) => {
            recorder.pod(pod, Some(&spec.name), false, "Pulling", format!("Pulling image \"{name}\""));
            let started = Instant::now();
            let pulled = context.runtime.pull(name, sandbox).await.map_err(|status| {
                let message = format!("Failed to pull image \"{name}\": {}", words(&status));
                recorder.pod(pod, Some(&spec.name), true, "Failed", message.clone());
                failure("ErrImagePull", words(&status))
            })?;
            let took = images::words(started.elapsed());
            let size = context.runtime.image(name).await.ok().flatten().map_or(0, |i| i.size);
            let message = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {size} bytes."
            );
            recorder.pod(pod, Some(&spec.name), false, "Pulled", message);
            Ok(pulled)
        }
    }
}
