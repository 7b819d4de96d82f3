//! DaemonSets: one pod on each node that fits.

mod back_off;
mod controller;
mod plan;
mod rolling;
#[cfg(test)]
mod tests;

pub use controller::DaemonSetController;
