//! Runs wasm containers: the engine, compiled code, pod sandboxes, what the host grants, HTTP dispatch, Service
//! listeners and the wasm-host process that holds them.
//!
//! Nothing here knows Kubernetes objects or CRI: what comes in is [`protocol`].

pub mod client;
pub mod compile;
pub mod engine;
mod frame;
pub mod host;
pub mod protocol;
