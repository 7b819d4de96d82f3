//! StatefulSets: pods with names, order and claims of their own.

mod controller;
mod identity;
mod plan;
#[cfg(test)]
mod tests;

pub use controller::StatefulSetController;
