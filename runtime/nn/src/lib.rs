//! Inference for guests: ONNX models that run on tract, within bounds, and wasi:nn in front of them.
//!
//! [`model`] knows no wasm. [`wasi`] is the interface that guests import; what it loads and computes runs on threads of
//! its own, never on those that guests share. Whoever embeds it says what a container is charged through [`Account`].
#![forbid(unsafe_code)]

pub mod model;
mod proto;
pub mod wasi;

pub use model::{Error, ErrorKind, Kind, Model, Tensor};
pub use wasi::{Account, Context, Inference, View, add_to_linker};

/// The largest model, in bytes of its encoding.
pub const MAX_MODEL: usize = 128 << 20;
/// The largest tensor that a guest hands in or gets, or that lies between two operators of a model, in bytes.
pub const MAX_TENSOR: usize = 128 << 20;
/// The most bytes that lie between the operators of a model while it runs.
pub const MAX_WORK: usize = 1 << 30;
/// The most operators of a model.
pub const MAX_NODES: usize = 20_000;
/// The most dimensions of a tensor.
pub const MAX_RANK: usize = 16;
/// The most inputs and the most outputs of a model.
pub const MAX_PORTS: usize = 256;
