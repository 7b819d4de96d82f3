//! What exec, attach and port-forward are made of: the streams of a process, their frames on a local socket, and the
//! server whose URLs CRI hands out, with the protocols that Kubernetes clients speak. Nothing here starts a process.
#![forbid(unsafe_code)]

mod channels;
pub mod frame;
mod portforward;
mod relay;
pub mod server;
pub mod spdy;
pub mod streams;

pub use relay::relay;
pub use server::{Backend, Call, Dialled, Ended, Server};
pub use streams::{Far, Near, Output, Size, streams};
