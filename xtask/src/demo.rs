//! `cargo xtask demo`: Coracle on this machine, with examples/hello deployed.

use anyhow::{Result, bail};
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// Check the answer, shut down cleanly and exit.
    #[arg(long)]
    once: bool,
}

pub fn run(options: &Options) -> Result<()> {
    bail!("the binary has no `up` yet (once: {})", options.once)
}
