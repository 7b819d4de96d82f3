//! The CRI service as a process of its own, driven over its socket; images come from a registry in the test.

mod conformance;
mod containerd;
mod isolated;
mod leaks;
mod linux;
mod pods;
mod programs;
mod registry;
mod resources;
mod restart;
mod service;
