//! DaemonSets: one pod on each node that fits.

mod controller;
mod plan;
mod rolling;
#[cfg(test)]
mod tests;

pub use controller::DaemonSetController;
