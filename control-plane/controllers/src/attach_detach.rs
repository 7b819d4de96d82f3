//! Volumes that a CSI driver has to attach: a VolumeAttachment for each volume and node, as long as a pod there uses it.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

pub use controller::AttachDetach;

/// The annotation of a node whose volumes are attached from here; its agent sets it.
pub const MANAGED: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
