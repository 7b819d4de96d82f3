//! `coracle wasm-host`: the process that holds pods' sandboxes.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

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
        let host = coracle_wasm::host::HostOptions { socket: options.socket, state_dir: options.state_dir };
        tokio::select! {
            served = coracle_wasm::host::serve(host) => served.map_err(anyhow::Error::from),
            () = shutdown.cancelled() => Ok(()),
        }
    })
}
