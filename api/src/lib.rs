//! The object model that every part of Coracle shares: names, errors, selectors, quantities, patches, and the table of
//! types of Kubernetes 1.36 that drives decoding, defaulting and OpenAPI.
//!
//! Nothing here does I/O, and nothing here knows what a kind means: objects are JSON.
#![forbid(unsafe_code)]

pub mod apply;
pub mod field;
pub mod fields;
pub mod labels;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod qos;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod status;
pub mod time;
pub mod yaml;

pub use meta::{GroupResource, Gvk};
pub use status::Status;
