//! Jobs: pods that run to completion, each counted once.

mod back_off;
mod controller;
mod count;
mod indexes;
mod plan;
mod policy;
#[cfg(test)]
mod tests;

pub use controller::JobController;

/// The finalizer that holds a Job's pod until it is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// Label of a Job's pods.
pub const JOB_NAME: &str = "batch.kubernetes.io/job-name";
