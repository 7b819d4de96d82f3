//! Images on a node: names, pulling from registries, and the content store.
//!
//! An image is a wasm component in an OCI registry (the CNCF wasm artifact layout) or a Linux image, whose layers are
//! unpacked for overlayfs. Nothing here compiles or runs code, and nothing here knows CRI.

pub mod archive;
pub mod config;
pub mod error;
pub mod hosts;
pub mod manifest;
mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod signature;
pub mod store;
mod tarball;
pub mod unpack;

pub use config::{Credentials, Limits, Mirror, RegistryConfig, SignaturePolicy};
pub use error::{Attempt, Error};
pub use manifest::Wanted;
pub use progress::Progress;
pub use pull::Puller;
pub use reference::Reference;
pub use store::{ImageRecord, Platform, Store, Usage};
