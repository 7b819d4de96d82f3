//! Making a sandbox: which handler, and whether for Linux containers.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::Api;

use super::config::sandbox;
use super::container;
use crate::context::Context;
use crate::pods::state::{Memory, init_containers, main_containers};

/// Handlers of the runtime that need no RuntimeClass object: a class of the same name means them.
const OWN: [&str; 3] = ["wasm", "wasm-isolated", "runc"];

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
        let config = sandbox(pod, 0, &context.surroundings(&logs, false));
        if let Ok(image) = container::image(context, pod, spec, config, "").await {
            linux |= image.user.linux;
            memory.images.insert(spec.name.clone(), image);
        }
    }
    linux
}

/// Makes the sandbox of a pod.
///
/// # Errors
/// The words of a `FailedCreatePodSandBox` Event.
pub async fn run(context: &Context, pod: &Pod, attempt: u32, memory: &mut Memory) -> Result<(), String> {
    let handler = handler(context, pod).await?;
    let linux = match handler.as_str() {
        "wasm" | "wasm-isolated" => false,
        "" => context.runs_linux() && has_linux(context, pod, memory).await,
        _ => true,
    };
    let logs = context.log_directory(pod);
    let config = sandbox(pod, attempt, &context.surroundings(&logs, linux));
    let made = context.runtime.run_sandbox(config, &handler).await;
    made.map(drop).map_err(|status| container::words(&status))
}
