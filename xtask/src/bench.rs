//! `cargo xtask bench`: figures of this machine, next to the peer where one can be installed.

use anyhow::{Result, bail};
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// What to measure: `api` or `pods`.
    suite: Option<String>,
    /// Where to write the rows as JSON.
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    bail!("no suite named {:?} yet (json: {:?})", options.suite, options.json)
}
