//! Real clients on the real binary. Each test says its profile.

mod bad_input;
mod faults;
mod hello;
mod kube_rs;
mod languages;
mod pods;
mod readme;
