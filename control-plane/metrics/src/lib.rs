//! The API group `metrics.k8s.io`: what nodes and pods use now, for `kubectl top` and the HorizontalPodAutoscaler.
//!
//! [`scrape`] asks each node's agent, through the API server, for its counters; [`usage`] turns two readings into rates;
//! [`resources`] are the read-only kinds that the API server serves from the last reading. Nothing is stored.
#![forbid(unsafe_code)]

mod reading;
mod resources;
mod scrape;
mod usage;

pub use resources::{Objects, resources};
pub use scrape::{IDENTITY, Options, run};
pub use usage::Usage;
