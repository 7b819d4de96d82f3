//! The scheduler: finds a node for each pod that has none.
//!
//! [`view`] is what it keeps of pods and nodes, [`plugins`] decide one thing a file, [`snapshot`] is what is taken of each node, [`cycle`] puts them together (pure),
//! [`queue`] says when a pod is tried, [`run`] watches and binds. State is reached through the Kubernetes API alone.
#![forbid(unsafe_code)]

pub mod bind;
pub mod config;
pub mod cycle;
pub mod devices;
pub mod explain;
pub mod plugins;
pub mod preemption;
pub mod profile;
pub mod queue;
pub mod run;
pub mod snapshot;
pub mod view;
pub mod wake;
pub mod world;

pub use run::{Options, run};
