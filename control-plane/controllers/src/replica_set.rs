//! ReplicaSets: the wanted number of pods from one template.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

use crate::view::ReplicaSetStatus as Status;
pub use controller::ReplicaSetController;
