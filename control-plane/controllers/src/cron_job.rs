//! CronJobs: Jobs on a schedule.

mod controller;
mod plan;
mod schedule;
#[cfg(test)]
mod tests;

pub use controller::CronJobController;
