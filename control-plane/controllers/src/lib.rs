//! Controllers: each turns wanted state into actions through the Kubernetes API, under its own identity.
//!
//! A folder is a controller: `plan.rs` decides (pure), `controller.rs` acts. What they share: [`cache`] (one watch a
//! kind), [`queue`], [`reconcile`] (the loop), [`write`] (the API by path) and [`events`]. Nothing here knows the store.
#![forbid(unsafe_code)]

pub mod cache;
pub mod deployment;
pub mod endpoint_slice;
pub mod events;
pub mod expectations;
pub mod informers;
pub mod ownership;
pub mod queue;
pub mod reconcile;
pub mod replica_set;
pub mod view;
pub mod write;
