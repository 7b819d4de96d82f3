//! The CRI service: pods and images for a kubelet (or our agent), over wasm and Linux containers.
//!
//! Records of sandboxes and containers are JSON files; what runs lives in a wasm-host process that outlives this one and
//! is adopted when it comes back. Nothing here knows the Kubernetes API, and nothing here runs a guest.

pub mod address;
pub mod compile;
pub mod conformance;
mod containers;
mod exec;
pub mod host;
mod images;
pub mod isolated;
pub mod journal;
mod links;
pub mod linux;
mod metrics;
mod network;
mod reconcile;
mod record;
mod rpc;
mod sandboxes;
pub mod server;
mod service;
mod spec;
mod state;
mod stats;
mod streaming;

pub use linux::Routed;
pub use server::{Options, end_hosts, serve};
pub use spec::{HANDLERS, INSTANCE_ANNOTATION, PORTS_ANNOTATION};
