//! The devices of a container: extended resources that a device plugin serves.

use std::collections::BTreeMap;

use coracle_api::quantity::Quantity;
use coracle_devices::manager::Holder;
use coracle_devices::v1beta1::ContainerAllocateResponse;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::context::Context;
use crate::pods::state::{init_containers, is_sidecar};

/// How many of which resource a container asks for; whole numbers of extended resources only.
pub fn wanted(spec: &Container) -> BTreeMap<String, usize> {
    let limits = spec.resources.iter().flat_map(|r| r.limits.iter().flatten());
    let count = |(name, amount): (&String, &k8s_openapi::apimachinery::pkg::api::resource::Quantity)| {
        let count = usize::try_from(Quantity::parse(&amount.0).ok()?.value()).ok()?;
        (name.contains('/') && count > 0).then(|| (name.clone(), count))
    };
    limits.filter_map(count).collect()
}

/// Init containers of the pod that have ended when a container begins.
fn ended<'a>(pod: &'a Pod, name: &str) -> Vec<&'a str> {
    let before = init_containers(pod).iter().take_while(|spec| spec.name != name);
    before.filter(|spec| !is_sidecar(spec)).map(|spec| spec.name.as_str()).collect()
}

/// Gives the container its devices, and says what it gets with them. A resource that no plugin ever served here is a
/// mere number.
///
/// # Errors
/// When they are not free, or the plugin is away: it is tried again.
pub async fn allocate(
    context: &Context,
    pod: &Pod,
    spec: &Container,
    linux: bool,
) -> Result<ContainerAllocateResponse, String> {
    let mut wanted = wanted(spec);
    wanted.retain(|resource, _| context.devices.knows(resource));
    if wanted.is_empty() {
        return Ok(ContainerAllocateResponse::default());
    }
    let holder = Holder { pod: pod.metadata.uid.clone().unwrap_or_default(), container: spec.name.clone() };
    let mut given = context
        .devices
        .allocate(&holder, &wanted, &ended(pod, &spec.name))
        .await
        .map_err(|e| e.to_string())?;
    tracing::info!(pod = pod.metadata.name, container = spec.name, held = ?context.devices.held(&holder), "devices");
    if !linux {
        // A wasm container has no device nodes: its capabilities are in the annotations.
        given.devices.clear();
        given.cdi_devices.clear();
        given.mounts.clear();
    }
    Ok(given)
}
