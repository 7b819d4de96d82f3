//! `cargo xtask faults`: breaks real servers for as long as asked, and checks what their clients saw.

use anyhow::Result;
use clap::Args;

use crate::process::{cargo, root, shown};

#[derive(Args)]
pub struct Options {
    /// What everything random is made from; otherwise one is chosen and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many faults.
    #[arg(long, default_value_t = 2000)]
    faults: usize,
}

pub fn run(options: &Options) -> Result<()> {
    shown(cargo().args(["build", "-p", "coracle", "-p", "coracle-faults"]).current_dir(root()))?;
    let mut command = std::process::Command::new(root().join("target/debug/coracle-faults"));
    command.env("CORACLE_BIN", root().join("target/debug/coracle")).current_dir(root());
    command
        .arg(format!("--count={}", options.faults))
        .args(options.seed.map(|seed| format!("--seed={seed}")));
    shown(&mut command)
}
