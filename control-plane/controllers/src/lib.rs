//! Controllers: each turns wanted state into actions through the Kubernetes API, under its own identity.
//!
//! A folder is a controller: `plan.rs` decides (pure), `controller.rs` acts. What they share: [`cache`] (one watch a
//! kind), [`queue`], [`reconcile`] (the loop), [`write`] (the API by path) and [`events`]. Nothing here knows the store.
//! Every controller is one line in [`manager`].
#![forbid(unsafe_code)]

pub mod cache;
pub mod deployment;
pub mod discovery;
pub mod endpoint_slice;
pub mod events;
pub mod expectations;
pub mod garbage;
pub mod informers;
pub mod manager;
pub mod namespace;
pub mod node;
pub mod ownership;
pub mod queue;
pub mod reconcile;
pub mod replica_set;
pub mod view;
pub mod write;

pub use manager::{IDENTITIES, Options, run};
