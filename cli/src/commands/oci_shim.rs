//! `coracle oci-shim`: what stands between a Linux container and the runtime.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The container's folder.
    dir: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    coracle_oci::shim::main(&options.dir)
}
