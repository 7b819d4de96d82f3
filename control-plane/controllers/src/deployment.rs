//! Deployments: replacing the pods of one template by those of the next, at a bounded pace, with a history.

mod conditions;
mod controller;
pub(crate) mod hash;
pub(crate) mod limits;
mod plan;
mod rolling;
mod scaling;
#[cfg(test)]
mod tests;

pub use controller::DeploymentController;

/// Which revision of a Deployment a ReplicaSet is.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Revisions that a ReplicaSet was before it became the newest again.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// `spec.replicas` of the Deployment when the ReplicaSet was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// The most pods there may be, surge included, when the ReplicaSet was last scaled.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// The label that keeps the pods of two templates apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
