//! Runs wasm containers: the engine, compiled code, pod sandboxes, what the host grants, HTTP dispatch, Service
//! listeners and the wasm-host process that holds them.
//!
//! Nothing here knows Kubernetes objects or CRI: what comes in is [`protocol`].

pub mod client;
pub mod compile;
mod container;
mod cpu;
pub mod engine;
mod frame;
mod guest;
mod handler;
pub mod host;
mod hosts;
mod linker;
mod log;
mod memory;
mod network;
mod program;
pub mod protocol;
pub mod routes;
mod sandbox;
mod services;
