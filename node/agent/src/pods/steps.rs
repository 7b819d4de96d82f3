//! Carrying out: what a plan's actions do to the runtime, the disk and the API. Each can be repeated without harm.

pub mod config;
pub mod container;
pub mod debug;
pub mod devices;
pub mod hosts;
pub mod sandbox;
pub mod volumes;
