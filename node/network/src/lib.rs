//! Services and their endpoints as one table, streamed to the runtime. Deciding (`plan`) is pure; `feed` watches and sends.
//!
//! Nothing here listens on a Service address: the runtime does, and it keeps the last table while this process is away.
//! Ingress and Knative routes are served by `node/gateway` (coracle-gateway), an HTTP reverse proxy of its own.
#![forbid(unsafe_code)]

pub mod events;
pub mod feed;
pub mod plan;

pub use feed::{Options, run, run_with};
