//! HorizontalPodAutoscalers: as many pods as their use of CPU or memory asks for.

mod behavior;
mod conditions;
mod controller;
mod custom;
mod evaluate;
mod metrics;
mod replicas;
#[cfg(test)]
mod tests;

pub use controller::{AutoscalerController, Options};
