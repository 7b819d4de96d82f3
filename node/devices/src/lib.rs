//! Devices of a node: the kubelet's device-plugin API v1beta1 from both sides.
//!
//! [`manager`] is the node agent's side: plugins register with it, it keeps count of their devices and gives each to one
//! container at a time. [`gpu`] is a plugin: NVIDIA GPUs found through NVML, described to runtimes by CDI.
//! [`plugin`] serves any list of devices as a plugin.
//!
//! What a container gets is what `Allocate` answers. Of Linux containers it is env, mounts, device nodes and CDI names.
//! A wasm container has no device nodes: the runtime reads the annotations under [`annotation`] and grants capabilities.
#![forbid(unsafe_code)]

pub mod gpu;
pub mod manager;
pub mod plugin;

/// The device-plugin API (`v1beta1`).
#[allow(clippy::all, missing_docs)]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// The only version of the API.
pub const VERSION: &str = "v1beta1";
/// The agent's socket in the plugin directory.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
/// A device that can be given out.
pub const HEALTHY: &str = "Healthy";

/// What a runtime is told, by annotation, about the devices of a wasm container. This is the whole contract between the
/// GPU plugin and a host capability: a wasm container that carries [`CAPABILITIES`] with `wasi:nn` is linked to wasi:nn,
/// and its inference runs on the devices of [`DEVICES`], or on the CPU where such a device is none of hardware (`fake-0`).
pub mod annotation {
    /// Ids of the devices that the container has to itself, joined by commas: `GPU-<uuid>` of NVML, or `fake-N`.
    pub const DEVICES: &str = "coracle.dev/gpu-devices";
    /// Host capabilities that the container is granted, joined by commas. The GPU plugin grants `wasi:nn`.
    pub const CAPABILITIES: &str = "coracle.dev/capabilities";
}
