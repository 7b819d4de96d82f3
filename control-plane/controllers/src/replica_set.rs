//! ReplicaSets: the wanted number of pods from one template.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

pub use controller::ReplicaSetController;
