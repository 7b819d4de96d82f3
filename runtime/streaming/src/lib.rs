//! What exec, attach and port-forward are made of: the streams of a process, their frames on a local socket, and the
//! server whose URLs CRI hands out. Nothing here starts a process.
#![forbid(unsafe_code)]

pub mod frame;
pub mod streams;

pub use streams::{Far, Near, Output, Size, streams};
