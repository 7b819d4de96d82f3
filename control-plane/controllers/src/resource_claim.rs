//! Claims of devices: made from templates for their pods, kept for those who use them, given back after.

mod controller;
mod plan;

pub use controller::ResourceClaims;

/// Holds a claim that has devices.
pub const PROTECTED: &str = "resource.kubernetes.io/delete-protection";
/// On a claim that was made for a pod: the name that it has in the pod.
pub const POD_CLAIM: &str = "resource.kubernetes.io/pod-claim-name";
