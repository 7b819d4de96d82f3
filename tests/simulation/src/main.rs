//! `coracle-simulation --seeds N`: a cluster of the store under faults that are made up, once for each seed.

use anyhow::{Context, Result};
use clap::Parser;
use coracle_simulation::{Plant, each_alone, random, simulate};

#[derive(Parser)]
#[command(name = "coracle-simulation", about = "Simulate clusters of the store under faults")]
struct Arguments {
    /// The first seed; otherwise one is chosen and printed.
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds, one after the other.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// How many faults for each.
    #[arg(long, default_value_t = 12)]
    count: usize,
    /// Run this one seed in this process, and say what happens.
    #[arg(long)]
    alone: bool,
    /// Print each fault.
    #[arg(long)]
    verbose: bool,
    /// A mistake that has to be found.
    #[arg(long)]
    plant: Option<Plant>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let chosen = arguments.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let count = arguments.count;
    if arguments.alone {
        random::comes_from(chosen);
        if std::env::var_os("RUST_LOG").is_some() {
            tracing_subscriber::fmt()
                .without_time()
                .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
                .init();
        }
        let report = simulate(chosen, count, arguments.plant, arguments.verbose);
        println!(
            "seed {chosen}: {:?}",
            report.with_context(|| format!("seed {chosen} with {count} faults"))?
        );
        return Ok(());
    }
    println!("seeds {chosen} to {} with {count} faults each", chosen + arguments.seeds - 1);
    let program = std::env::current_exe()?;
    let said = each_alone(&program, chosen, arguments.seeds, &["--count", &count.to_string()])?;
    println!("nothing is wrong with {} seeds", said.len());
    Ok(())
}
