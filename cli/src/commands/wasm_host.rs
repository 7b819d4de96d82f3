//! `coracle wasm-host`: the process that holds pods' sandboxes.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use coracle_wasm::host::{HostOptions, serve};
use coracle_wasm::routes::{Cidr, Ranges};

#[derive(Args)]
pub struct Options {
    /// The socket to serve.
    #[arg(long)]
    socket: PathBuf,
    /// Where the last Service table lies.
    #[arg(long)]
    state_dir: PathBuf,
    /// Addresses of all pods of the cluster.
    #[arg(long)]
    pod_cidr: Option<Cidr>,
    /// Addresses of Services.
    #[arg(long)]
    service_cidr: Option<Cidr>,
    /// It is the host of one pod: it gives up the system calls that guests do not take, and opens no Service listeners.
    #[arg(long)]
    isolated: bool,
    /// It is one more host beside the shared one, which has the listeners of Services.
    #[arg(long)]
    further: bool,
    /// The collector that spans of guests go to (OTLP over HTTP), `http://host:port`.
    #[arg(long)]
    otlp_endpoint: Option<String>,
}

pub fn run(options: Options) -> Result<()> {
    let default = Ranges::default();
    let ranges = Ranges {
        pods: options.pod_cidr.unwrap_or(default.pods),
        services: options.service_cidr.unwrap_or(default.services),
    };
    let Options { socket, state_dir, isolated, further, otlp_endpoint, .. } = options;
    let host = HostOptions { socket, state_dir, ranges, isolated, further, otlp_endpoint };
    super::run_service(|shutdown| async move {
        tokio::select! {
            served = serve(host) => served,
            () = shutdown.cancelled() => Ok(()),
        }
    })
}
