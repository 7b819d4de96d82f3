//! `coracle-faults --seed N --count M`: what `cargo xtask faults` runs. Prints the faults as they come and the verdict.

#![forbid(unsafe_code)]

use anyhow::Result;
use clap::Parser;
use coracle_faults::run::{Options, run};

#[derive(Parser)]
#[command(name = "coracle-faults", about = "Break servers and check what their clients saw")]
struct Arguments {
    /// What everything random is made from; otherwise one is chosen and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many faults.
    #[arg(long, default_value_t = 30)]
    count: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // Another crate of the tree brings a second provider, so that rustls cannot choose by itself.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    let report = run(Options { seed, count: arguments.count })?;
    println!("nothing is wrong: {report:?}");
    Ok(())
}
