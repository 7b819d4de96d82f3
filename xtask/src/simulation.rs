//! `cargo xtask simulation`: the store's cluster in one thread under made-up faults, for as many seeds as asked.

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::process::{cargo, root, shown};

#[derive(Args)]
pub struct Options {
    /// The first seed and the one after the last, as `1000..1400`.
    #[arg(long, default_value = "1..20001", value_parser = seeds)]
    seeds: (u64, u64),
    /// How many faults for each.
    #[arg(long, default_value_t = 12)]
    faults: usize,
}

fn seeds(text: &str) -> Result<(u64, u64)> {
    let (from, to) = text.split_once("..").context("seeds are FROM..TO")?;
    let (from, to) = (from.parse()?, to.parse()?);
    ensure!(from < to, "there is no seed from {from} to {to}");
    Ok((from, to))
}

pub fn run(options: &Options) -> Result<()> {
    shown(cargo().args(["build", "-p", "coracle-simulation"]).current_dir(root()))?;
    let (from, to) = options.seeds;
    let mut command = std::process::Command::new(root().join("target/debug/coracle-simulation"));
    command.arg(format!("--seed={from}")).arg(format!("--seeds={}", to - from)).current_dir(root());
    shown(command.arg(format!("--count={}", options.faults)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range() {
        assert_eq!(seeds("1000..1400").unwrap(), (1000, 1400));
        for wrong in ["7", "7..7", "8..7", "a..b", ".."] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }
}
