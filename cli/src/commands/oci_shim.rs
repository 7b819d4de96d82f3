//! `coracle oci-shim`: what stands between a Linux container and the runtime.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The container's folder, or a pod's.
    dir: PathBuf,
    /// Make the process namespace of a pod whose containers share one.
    #[arg(long, conflicts_with = "pause_init")]
    pause: bool,
    /// Be the first process of such a namespace.
    #[arg(long)]
    pause_init: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let pause = coracle_oci::pause::from_arguments(options.pause, options.pause_init, &options.dir);
    pause.unwrap_or_else(|| coracle_oci::shim::main(&options.dir))
}
