//! Messages, clients and server traits of the two interfaces of the runtime: CRI v1 and the Service table feed.
//! Generated from `proto/`; nothing here decides anything.

pub mod annotation;
pub mod endpoint;
/// The label of a metric whose value is not whole: its text is the value, for CRI's are whole numbers.
pub const VALUE_LABEL: &str = "__value__";

pub mod mount;
pub mod signal;

/// CRI v1 (`runtime.v1`), as kubelet and crictl speak it.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// The Service table feed (`coracle.network.v1`).
#[allow(clippy::all, missing_docs)]
pub mod network {
    tonic::include_proto!("coracle.network.v1");
}

pub use endpoint::{EndpointError, connect, connect_lazy};

/// The control group of all Linux pods of our runtime, each in a group of its own below it.
pub const PODS_GROUP: &str = "/coracle";

/// The largest message that either side accepts, in bytes: lists of a node full of pods pass 4 MiB, the default.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
