//! Controllers: each turns wanted state into actions through the Kubernetes API, under its own identity.
//!
//! A folder is a controller: `plan.rs` decides (pure), `controller.rs` acts. What they share: [`cache`] (one watch a
//! kind), [`queue`], [`reconcile`] (the loop), [`write`] (the API by path) and [`events`]. Nothing here knows the store.
//! Every controller is one line in [`manager`].
#![forbid(unsafe_code)]

pub mod access;
pub mod attach_detach;
pub mod autoscaler;
pub mod bootstrap_tokens;
pub mod cache;
pub mod certificates;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod election;
pub mod endpoint_slice;
pub mod endpoints;
pub mod events;
pub mod expectations;
pub mod garbage;
pub mod history;
pub mod hollow;
pub mod informers;
pub mod job;
pub mod load_balancer;
pub mod manager;
pub mod namespace;
pub mod node;
pub mod ownership;
pub mod placement;
pub mod pod_control;
pub mod pod_gc;
pub mod queue;
pub mod quota;
pub mod reconcile;
pub mod replica_set;
pub mod resource_claim;
pub mod role_aggregation;
pub mod roll_on_change;
pub mod scale;
pub mod service_cidr;
pub mod stateful_set;
pub mod ttl_after_finished;
pub mod view;
pub mod volume;
pub mod write;

pub use manager::{IDENTITIES, Options, run};
