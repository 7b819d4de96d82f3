//! EndpointSlices: the addresses behind a Service, and which of them take requests.

mod controller;
mod plan;
#[cfg(test)]
mod tests;

pub use controller::EndpointSliceController;
