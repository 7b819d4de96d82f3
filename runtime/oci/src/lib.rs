//! Linux containers through an OCI runtime (runc's command line): bundles, root filesystems, namespaces and the network
//! of a pod, control groups, and one small shim process a container, which outlives the CRI service.
//!
//! Nothing here knows the Kubernetes API or wasm.

pub mod bundle;
pub mod cgroup;
pub mod checkpoint;
pub mod cni;
pub mod engine;
pub mod exec;
pub mod namespaces;
pub mod network;
pub mod pause;
pub mod rootfs;
mod runtime;
pub mod shim;

pub use engine::{Engine, Settings};
pub use runtime::Runtime;
pub use shim::State;
