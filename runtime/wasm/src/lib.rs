//! Runs wasm containers: the engine, compiled code, pod sandboxes, what the host grants, HTTP dispatch, Service
//! listeners and the wasm-host process that holds them.
//!
//! Nothing here knows Kubernetes objects or CRI: what comes in is [`protocol`].

mod affinity;
mod applets;
pub mod client;
pub mod compile;
mod container;
mod cpu;
mod dns;
pub mod engine;
mod frame;
mod guest;
mod handler;
pub mod host;
mod hosts;
mod link;
mod linker;
mod log;
mod memory;
mod names;
mod netns;
mod network;
mod policy;
mod program;
pub mod protocol;
pub mod routes;
mod sandbox;
mod services;
mod switch;
