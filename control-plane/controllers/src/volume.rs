//! Volumes and claims: binding, local provisioning, reclaiming, and protection while in use.

mod binder;
mod ephemeral;
mod plan;
mod protection;
mod provision;
#[cfg(test)]
mod tests;

pub use binder::VolumeBinder;
pub use ephemeral::EphemeralVolumes;
pub use plan::{fits, kept_for};
pub use protection::Protection;
