//! Nodes: pod address ranges, silence, taints, and the pods of nodes that are silent or gone.

mod controller;
mod plan;
mod ranges;
#[cfg(test)]
mod tests;
mod zones;

pub use controller::NodeController;
pub use ranges::Ranges;
