//! `cargo xtask`: what a developer and CI run. Nothing here is part of the product.

mod bench;
mod compat;
mod demo;
mod faults;
mod guests;
mod kubectl;
mod languages;
mod peers;
mod process;
mod simulation;
mod test;
mod tidy;
mod toolchain;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, show, test and measure Coracle")]
enum Command {
    /// Start Coracle in a temporary directory, deploy examples/hello and show how to reach it.
    Demo(demo::Options),
    /// Run everything that CI runs.
    Test(test::Options),
    /// Measure, next to the peer where one can be installed.
    Bench(bench::Options),
    /// Break servers while clients work, and check what the clients saw.
    Faults(faults::Options),
    /// Simulate clusters of the store under faults, seed by seed.
    Simulation(simulation::Options),
    /// Check what reviewers would otherwise repeat.
    Tidy(tidy::Options),
    /// Write docs/compatibility.md from the end-to-end tests.
    Compat,
    /// Install the wasm target and build every guest program.
    Guests {
        /// Those in JavaScript, Python, Go and C too; their tools take about 1 GB.
        #[arg(long)]
        languages: bool,
    },
    /// Install the exact kubectl that the tests use and print its path.
    Kubectl,
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Faults(options) => faults::run(&options),
        Command::Simulation(options) => simulation::run(&options),
        Command::Tidy(options) => tidy::run(&options),
        Command::Compat => compat::write().map(|path| println!("{}", path.display())),
        Command::Guests { languages } => {
            let mut built = guests::build_all()?;
            if languages {
                built.extend(languages::build_all()?);
            }
            for guest in built {
                println!("{}", guest.display());
            }
            Ok(())
        }
        Command::Kubectl => kubectl::install().map(|path| println!("{}", path.display())),
    }
}
