//! Controllers: each turns wanted state into actions through the Kubernetes API, under its own identity.
//!
//! A folder is a controller: `plan.rs` decides (pure), `controller.rs` acts. What they share: [`cache`] (one watch a
//! kind), [`queue`], [`reconcile`] (the loop), [`write`] (the API by path) and [`events`]. Nothing here knows the store.
//! Every controller is one line in [`manager`].
#![forbid(unsafe_code)]

pub mod cache;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod discovery;
pub mod endpoint_slice;
pub mod events;
pub mod expectations;
pub mod garbage;
pub mod history;
pub mod informers;
pub mod job;
pub mod manager;
pub mod namespace;
pub mod node;
pub mod ownership;
pub mod placement;
pub mod pod_control;
pub mod queue;
pub mod reconcile;
pub mod replica_set;
pub mod stateful_set;
pub mod view;
pub mod write;

pub use manager::{IDENTITIES, Options, run, user_of};
