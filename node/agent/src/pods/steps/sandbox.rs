//! Making a sandbox: which handler, and whether for Linux containers.

use std::collections::BTreeSet;

use coracle_cri_api::v1::PodSandboxConfig;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use super::config::{hostname, sandbox, unformed_dns};
use super::container;
use crate::context::Context;
use crate::numa::Refusal;
use crate::pods::state::{Memory, init_containers, main_containers};

/// Handlers of the runtime that need no RuntimeClass object: a class of the same name means them.
const OWN: [&str; 3] = ["wasm", "wasm-isolated", "runc"];

/// What our runtime calls itself: of all others every container is a Linux container.
const OWN_NAME: &str = "coracle";

/// The handler that the pod's RuntimeClass names; empty: the default.
///
/// # Errors
/// When the class cannot be read, or does not exist.
pub async fn handler(context: &Context, pod: &Pod) -> Result<String, String> {
    let class = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default();
    if class.is_empty() {
        return Ok(String::new());
    }
    match Api::<RuntimeClass>::all(context.client.clone()).get_opt(class).await {
        Ok(Some(found)) => Ok(found.handler),
        Ok(None) if OWN.contains(&class) => Ok(class.to_owned()),
        Ok(None) => Err(format!("failed to get sandbox runtime: RuntimeClass \"{class}\" not found")),
        Err(error) => Err(format!("failed to get sandbox runtime: read RuntimeClass \"{class}\": {error}")),
    }
}

/// Whether the pod has Linux containers. Its images are looked at first, and pulled if need be; what was found is kept for
/// the containers' start. An image that cannot be had is told there.
async fn has_linux(context: &Context, pod: &Pod, memory: &mut Memory) -> bool {
    let mut linux = memory.needs_linux;
    for spec in init_containers(pod).iter().chain(main_containers(pod)) {
        let logs = context.log_directory(pod);
        let config = sandbox(pod, 0, &context.surroundings(pod, &logs, false));
        if let Ok(image) = container::image(context, pod, spec, config, "").await {
            linux |= image.user.linux;
            memory.images.insert(spec.name.clone(), image);
        }
    }
    linux
}

/// The names of the containers that run as Linux containers. `None`: that is seen when their images are here.
pub async fn linux_containers(context: &Context, pod: &Pod) -> Option<BTreeSet<String>> {
    let all = || init_containers(pod).iter().chain(main_containers(pod));
    let every = || all().map(|spec| spec.name.clone()).collect();
    let handler = handler(context, pod).await.ok()?;
    let name = context.runtime.name().await.ok()?;
    match handler.as_str() {
        "wasm" | "wasm-isolated" => return Some(BTreeSet::new()),
        "" if name == OWN_NAME => {}
        _ => return Some(every()),
    }
    let handlers = context.runtime.handlers().await.ok()?;
    if handlers.iter().all(|h| Context::is_wasm(h)) {
        return Some(BTreeSet::new());
    }
    let mut linux = BTreeSet::new();
    for spec in all() {
        let image = context.runtime.image(spec.image.as_deref().unwrap_or_default(), "").await.ok()??;
        if image.user.linux {
            linux.insert(spec.name.clone());
        }
    }
    Some(linux)
}

/// Those whose images are known to be none of Linux left out, once the images were looked at.
fn linux_or_unknown(pod: &Pod, memory: &Memory) -> BTreeSet<String> {
    let all = init_containers(pod).iter().chain(main_containers(pod));
    let linux = all.filter(|spec| memory.images.get(&spec.name).is_none_or(|image| image.user.linux));
    linux.map(|spec| spec.name.clone()).collect()
}

/// Why there is no sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The words of a `FailedCreatePodSandBox` Event: it is tried again.
    Again(String),
    /// The node does not take the pod, now that its images are known.
    Refused(Refusal),
}

impl From<String> for Failure {
    fn from(words: String) -> Self {
        Self::Again(words)
    }
}

/// A sandbox that is to be made.
pub struct Prepared {
    config: PodSandboxConfig,
    handler: String,
}

/// Finds out what the sandbox of a pod is to be, for which images may have to be pulled. It may be broken off.
///
/// # Errors
/// See [`Failure`].
pub async fn prepare(
    context: &Context,
    pod: &Pod,
    attempt: u32,
    memory: &mut Memory,
) -> Result<Prepared, Failure> {
    hostname::nodename(pod, &context.dns.domain)?;
    let handler = handler(context, pod).await?;
    let linux = match handler.as_str() {
        "wasm" | "wasm-isolated" => false,
        "" => context.runs_linux() && has_linux(context, pod, memory).await,
        _ => true,
    };
    if memory.unplaced {
        let linux = linux_or_unknown(pod, memory);
        context.placement.place(pod, &linux).await.map_err(Failure::Refused)?;
        memory.unplaced = false;
    }
    let logs = context.log_directory(pod);
    let surroundings = context.surroundings(pod, &logs, linux);
    let config = sandbox(pod, attempt, &surroundings);
    for words in unformed_dns(pod, &surroundings) {
        context.recorder.pod(pod, None, true, "DNSConfigForming", words);
    }
    Ok(Prepared { config, handler })
}

/// Makes the sandbox. It must not be broken off: the runtime may make it all the same, and nobody would know of it.
///
/// # Errors
/// [`Failure::Again`].
pub async fn make(context: &Context, prepared: Prepared, memory: &mut Memory) -> Result<(), Failure> {
    let Prepared { config, handler } = prepared;
    let together = config.linux.as_ref().map(|l| [l.resources.clone(), l.overhead.clone()]);
    let made = context.runtime.run_sandbox(config, &handler).await;
    let id = made.map_err(|status| Failure::Again(container::words(&status)))?;
    memory.limited = together.map(|together| (id, together));
    Ok(())
}
