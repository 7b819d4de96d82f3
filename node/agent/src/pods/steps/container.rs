//! Starting a container: its image, its config, create, start, its `postStart` hook; with the kubelet's Events and reasons.

use std::time::{Duration, Instant};

use coracle_cri_api::{annotation, v1 as cri};
use k8s_openapi::api::core::v1::{Container, Pod};
use tonic::Status;

use super::config::{self, Ingredients};
use super::{debug, devices, hosts, volumes};
use crate::context::Context;
use crate::env;
use crate::hooks;
use crate::images::{self, Policy, credentials, progress};
use crate::objects::Kind;
use crate::pods::state::{Phase, PodState, Sandbox};
use crate::pods::termination;
use crate::probes::check::Target;
use crate::runtime::Image;
use crate::volumes::{container_mounts, devices as block, huge_pages};

/// How long a `postStart` hook may take: it has no limit in Kubernetes, and a pod cannot wait for ever.
const POST_START: Duration = Duration::from_secs(600);

/// Why a container did not start: the reason and the words of its waiting state.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// `ErrImagePull`, `CreateContainerConfigError` ...
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// What came of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs.
    Started,
    /// Its image is a Linux image, and the sandbox was not made for that.
    NeedsLinux,
}

fn failure(reason: &'static str, message: impl Into<String>) -> Failure {
    Failure { reason, message: message.into() }
}

/// The words of a gRPC error.
pub fn words(status: &Status) -> String {
    format!("rpc error: code = {:?} desc = {}", status.code(), status.message())
}

/// Starts one container of a pod in the sandbox that counts. `seen` is its image where that was seen to already.
pub async fn start(
    context: &Context,
    pod: &Pod,
    state: &PodState,
    spec: &Container,
    attempt: u32,
    seen: Option<Image>,
) -> Result<Outcome, Failure> {
    let recorder = &context.recorder;
    let sandbox = state.sandbox().ok_or_else(|| failure("CreateContainerError", "the pod has no sandbox"))?;
    let logs = context.log_directory(pod);
    let sandbox_config =
        config::sandbox(pod, sandbox.attempt, &context.surroundings(pod, &logs, sandbox.linux));
    let image = match seen {
        Some(image) => Ok(image),
        None => image(context, pod, spec, sandbox_config.clone(), &sandbox.handler).await,
    };
    let image = image.inspect_err(|error| {
        recorder.pod(pod, Some(&spec.name), true, "Failed", format!("Error: {}", error.reason));
    })?;
    if image.user.linux && !sandbox.linux && context.runs_linux() {
        if !debug::is_ephemeral(pod, spec) {
            return Ok(Outcome::NeedsLinux);
        }
        let message = debug::needs_another_sandbox(spec.image.as_deref().unwrap_or_default());
        recorder.pod(pod, Some(&spec.name), true, "Failed", format!("Error: {message}"));
        return Err(failure("CreateContainerError", message));
    }
    let made = match debug::sight(pod, state, spec, image.user.linux) {
        Ok(sight) => make_config(context, pod, spec, attempt, image, sandbox, sight).await,
        Err(words) => Err(words),
    };
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
    post_start(context, pod, spec, &id, sandbox).await?;
    Ok(Outcome::Started)
}

/// The container counts as started when its hook is done; one whose hook fails is ended.
async fn post_start(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    id: &str,
    sandbox: &Sandbox,
) -> Result<(), Failure> {
    let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else { return Ok(()) };
    let ip = sandbox.ips.first().map(String::as_str).unwrap_or_default();
    let target = Target { spec, id, ip, runtime: &context.runtime };
    let Err(why) = hooks::run(hook, &target, POST_START).await else { return Ok(()) };
    let message = format!("PostStartHook failed: {why}");
    context.recorder.pod(pod, Some(&spec.name), true, "FailedPostStartHook", message.clone());
    let words = format!("FailedPostStartHook: container {} is killed", spec.name);
    context.recorder.pod(pod, Some(&spec.name), false, "Killing", words);
    let grace = crate::pods::state::grace_seconds(pod, crate::pods::state::Fate::Runs);
    if let Err(status) = context.runtime.stop_container(id, grace).await {
        tracing::warn!(container = id, message = status.message(), "a container whose hook failed runs on");
    }
    Err(failure("PostStartHookError", message))
}

async fn make_config(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    image: Image,
    sandbox: &Sandbox,
    sight: debug::Sight,
) -> Result<cri::ContainerConfig, String> {
    let sources = volumes::read(context, pod, env::references(spec)).await.map_err(|e| e.to_string())?;
    let services = context.services.env(pod).await;
    let facts = context.facts(sandbox.ips.clone());
    let env = env::build(pod, spec, services.clone(), &sources, &facts).map_err(|e| e.to_string())?;
    let dir = volumes::place(context, pod).await.map_err(|e| e.to_string())?;
    let linux = image.user.linux;
    if let Some(volume) = huge_pages::mounted(pod, spec).filter(|_| !linux) {
        return Err(format!("volume {volume:?} is of huge pages, which a wasm container cannot use"));
    }
    let mut mounts = container_mounts(pod, spec, &dir, &env)?;
    if let Some(target) = &sight.volumes {
        // Its variables name its paths.
        let sources =
            volumes::read(context, pod, env::references(target)).await.map_err(|e| e.to_string())?;
        let theirs = env::build(pod, target, services, &sources, &facts).map_err(|e| e.to_string())?;
        mounts = debug::joined(mounts, container_mounts(pod, target, &dir, &theirs)?);
    }
    let last_words = termination::mount(&dir, spec, attempt, linux)?;
    let words_path = last_words.as_ref().filter(|_| !linux).map(|mount| mount.container_path.clone());
    mounts.extend(last_words);
    if linux {
        crate::volumes::sub_paths::bind(&dir, &spec.name, &mut mounts)?;
        mounts.extend(hosts::mount(pod, spec, &dir, &sandbox.ips, &context.dns.domain)?);
    }
    let blocks = block::of(pod, spec, &dir, linux)?;
    let mut devices = devices::allocate(context, pod, spec, linux).await?;
    devices.devices.extend(blocks.into_iter().map(|one| coracle_devices::v1beta1::DeviceSpec {
        container_path: one.container_path,
        host_path: one.host_path,
        permissions: if one.read_only { "r" } else { "mrw" }.to_owned(),
    }));
    // Of a wasm container the runtime says that it cannot have them.
    let claimed = crate::claims::devices(context, pod, spec)?.into_iter();
    devices.cdi_devices.extend(claimed.map(|name| coracle_devices::v1beta1::CdiDevice { name }));
    // A wasm container runs on its host's threads.
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !linux {
        context.placement.release(uid, &spec.name);
    }
    let cpus = context.cpus.share(uid, &spec.name).filter(|_| linux);
    let of = Ingredients {
        cpus,
        mems: context.memory.nodes(uid, &spec.name).unwrap_or_default(),
        attempt,
        image: image.id,
        user: image.user,
        env,
        mounts,
        target: sight.processes,
        devices,
        node_memory: context.machine_memory,
        profiles: context.profiles(),
        page_sizes: &context.page_sizes,
    };
    let mut config = config::container(pod, spec, of)?;
    config.annotations.extend(words_path.map(|path| (annotation::LAST_WORDS.to_owned(), path)));
    Ok(config)
}

/// The image of a container, pulled if its policy asks for that.
pub async fn image(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    sandbox: cri::PodSandboxConfig,
    handler: &str,
) -> Result<Image, Failure> {
    let recorder = &context.recorder;
    let name = spec.image.as_deref().unwrap_or_default();
    let policy = images::policy(spec);
    let present = context.runtime.image(name, handler).await.map_err(|status| {
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
            Ok(image)
        }
        (Policy::Never, None) => {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            recorder.pod(pod, Some(&spec.name), true, "ErrImageNeverPull", message.clone());
            Err(failure("ErrImageNeverPull", message))
        }
        (Policy::Always, _) | (Policy::IfNotPresent, None) => {
            recorder.pod(pod, Some(&spec.name), false, "Pulling", format!("Pulling image \"{name}\""));
            let started = Instant::now();
            let pulling = pull(context, pod, (name, handler), sandbox);
            let pulled = Box::pin(progress::told(context, (pod, spec), (name, handler), pulling)).await;
            let pulled = pulled.map_err(|status| {
                let message = format!("Failed to pull image \"{name}\": {}", words(&status));
                recorder.pod(pod, Some(&spec.name), true, "Failed", message);
                failure("ErrImagePull", words(&status))
            })?;
            let took = images::words(started.elapsed());
            let found = context.runtime.image(name, handler).await.ok().flatten();
            let size = found.as_ref().map_or(0, |i| i.size);
            let message = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). Image size: {size} bytes."
            );
            recorder.pod(pod, Some(&spec.name), false, "Pulled", message);
            Ok(Image { id: pulled, size, user: found.map(|i| i.user).unwrap_or_default() })
        }
    }
}

/// Pulls with each of the pod's secrets that fits until one does; without any, as nobody.
async fn pull(
    context: &Context,
    pod: &Pod,
    (image, handler): (&str, &str),
    sandbox: cri::PodSandboxConfig,
) -> Result<String, Status> {
    let secrets = pod.spec.iter().flat_map(|s| s.image_pull_secrets.iter().flatten());
    let references: Vec<_> = secrets.map(|s| (Kind::Secret, s.name.clone())).collect();
    let auths = if references.is_empty() {
        Vec::new()
    } else {
        match volumes::read(context, pod, references).await {
            Ok(found) => credentials::matching(image, found.values().flatten().map(|keys| keys.as_ref())),
            Err(error) => {
                tracing::warn!(pod = pod.metadata.name, %error, "pull secrets could not be read: pulling without");
                Vec::new()
            }
        }
    };
    let mut last = None;
    for auth in auths {
        match context.runtime.pull(image, handler, Some(auth), sandbox.clone()).await {
            Ok(pulled) => return Ok(pulled),
            Err(status) => last = Some(status),
        }
    }
    match last {
        Some(status) => Err(status),
        None => context.runtime.pull(image, handler, None, sandbox).await,
    }
}
