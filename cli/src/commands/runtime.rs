//! `coracle runtime`: the CRI service.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tokio_util::sync::CancellationToken;

#[derive(Args)]
pub struct Options {
    /// The CRI socket to serve.
    #[arg(long)]
    pub socket: PathBuf,
    /// Where records, images and compiled code lie.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// The registries' configuration (JSON); without one, names are used as they are.
    #[arg(long)]
    pub registries: Option<PathBuf>,
    /// Addresses of pods, until the node is given its own.
    #[arg(long, default_value = "127.64.0.0/18")]
    pub pod_cidr: String,
}

pub fn run(options: Options) -> Result<()> {
    super::run_service(|shutdown| serve(options, shutdown))
}

async fn serve(options: Options, shutdown: CancellationToken) -> Result<()> {
    let me = std::env::current_exe().context("find this program's own file")?;
    let registries = match &options.registries {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))?
        }
        None => Default::default(),
    };
    coracle_cri::serve(
        coracle_cri::Options {
            socket: options.socket,
            state_dir: options.state_dir,
            registries,
            wasm_host_command: vec![me.clone().into(), "wasm-host".into()],
            compile_command: vec![me.into(), "compile-wasm".into()],
            pod_cidr: options.pod_cidr,
        },
        shutdown,
    )
    .await
}
