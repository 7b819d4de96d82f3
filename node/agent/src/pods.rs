//! The life of pods on this node: `source` follows the API, `worker` drives one pod, `plan` decides (pure),
//! `steps` act, `status` says how the pod is (pure). Nothing here knows what runs inside a container.

pub mod backoff;
pub mod plan;
mod replaced;
pub mod requests;
pub mod source;
pub mod state;
pub mod static_pods;
pub mod status;
pub mod steps;
pub mod sysctls;
pub mod termination;
pub mod unsupported;
pub mod worker;
