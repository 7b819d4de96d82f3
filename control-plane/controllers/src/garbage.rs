//! The garbage collector: what is owned goes when its last owner goes.

mod controller;
mod graph;
mod plan;
#[cfg(test)]
mod tests;

pub use controller::GarbageCollector;

/// The finalizer of an owner that waits for its dependents to be deleted.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner whose dependents are to be let go.
pub const ORPHAN: &str = "orphan";
