//! What the host grants to guests: one module a capability. Each says how it is linked and what one instance gets.

pub(crate) mod cli;
pub(crate) mod filesystem;
pub(crate) mod http;
pub(crate) mod sockets;
