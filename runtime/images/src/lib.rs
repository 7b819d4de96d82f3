//! Images on a node: names, pulling from registries, and the content store.
//!
//! An image here is a wasm component in an OCI registry (the CNCF wasm artifact layout). Nothing here compiles or runs
//! code, and nothing here knows CRI.

pub mod config;
pub mod error;
pub mod manifest;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod store;

pub use config::{Credentials, Limits, Mirror, RegistryConfig};
pub use error::{Attempt, Error};
pub use pull::Puller;
pub use reference::Reference;
pub use store::{ImageRecord, Store, Usage};
