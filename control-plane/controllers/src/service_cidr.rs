//! Ranges of Service addresses: one that is deleted stays until no Service has an address of it.

mod controller;
mod plan;

pub use controller::ServiceCidrs;

/// Holds a range while addresses of it are in use.
pub const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
