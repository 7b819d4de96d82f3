//! `coracle wasm-host`: the process that holds pods' sandboxes.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use coracle_wasm::host::{HostOptions, serve};

#[derive(Args)]
pub struct Options {
    /// The socket to serve.
    #[arg(long)]
    socket: PathBuf,
    /// Where the last Service table lies.
    #[arg(long)]
    state_dir: PathBuf,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| async move {
        tokio::select! {
            served = serve(HostOptions::new(options.socket, options.state_dir)) => served,
            () = shutdown.cancelled() => Ok(()),
        }
    })
}
