//! A wasm host, driven through its socket, with guests built by `cargo xtask guests`.

mod capabilities;
mod commands;
mod handlers;
mod harness;
mod hostile;
mod links;
mod networking;
mod processes;
mod services;
mod streams;
mod threes;
