//! CronJobs: Jobs on a schedule.

mod controller;
pub mod invoke;
mod plan;
mod schedule;
#[cfg(test)]
mod tests;

pub use controller::CronJobController;
