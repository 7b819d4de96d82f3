//! EndpointSlices: the addresses behind a Service, and which of them take requests.

mod controller;
mod mirror;
mod plan;
#[cfg(test)]
mod tests;
pub mod topology;

pub use controller::EndpointSliceController;
pub use mirror::EndpointMirror;
