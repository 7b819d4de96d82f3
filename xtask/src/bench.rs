//! `cargo xtask bench`: figures of this machine, next to the peer where one can be installed.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::process::{cargo, root, shown};
use crate::{guests, kubectl, peers};

#[derive(Args)]
pub struct Options {
    /// What to measure: `api`, `http`, `pods` or `store`; everything where nothing is named.
    #[arg(value_parser = ["api", "http", "pods", "store"])]
    suite: Option<String>,
    /// Where to write the rows as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// The coracle binary to measure, instead of a release build of this tree.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Build without optimisation: to try the bench itself, never for a figure.
    #[arg(long)]
    dev: bool,
    /// How long one rate is measured, in seconds (1 to 10).
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10))]
    seconds: u64,
    /// What a Deployment of the suite `pods` grows to at once, each in turn (1 to 10,000).
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    bursts: Vec<u32>,
}

pub fn run(options: &Options) -> Result<()> {
    if options.dev {
        eprintln!("bench: a build without optimisation; what follows are no figures to quote");
    }
    build(options)?;
    let built = root().join("target").join(if options.dev { "debug" } else { "release" });
    let bin = match &options.bin {
        Some(path) => path.canonicalize().with_context(|| format!("find {}", path.display()))?,
        None => built.join("coracle"),
    };
    ensure!(bin.is_file(), "{} is no file", bin.display());
    let mut command = Command::new(built.join("coracle-bench"));
    command.env("CORACLE_BIN", bin).arg(format!("--seconds={}", options.seconds)).args(&options.suite);
    if options.suite.as_deref().is_none_or(|suite| suite == "http") {
        let peers = peers::install()?;
        command.env("CORACLE_WASMTIME", peers.wasmtime).env("CORACLE_NGINX", peers.nginx);
    }
    if options.suite.as_deref().is_none_or(|suite| suite == "store") {
        command.env("CORACLE_ETCD", peers::etcd()?);
    }
    command.env("CORACLE_KUBECTL", kubectl::install()?);
    for pods in &options.bursts {
        command.arg(format!("--bursts={pods}"));
    }
    if let Some(path) = &options.json {
        command.arg("--json").arg(path);
    }
    shown(&mut command)
}

/// What is measured and what measures it; the guest where pods are to run.
fn build(options: &Options) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "-p", "coracle-bench"]).current_dir(root());
    if !options.dev {
        command.arg("--release");
    }
    if options.bin.is_none() {
        command.args(["-p", "coracle"]);
    }
    shown(&mut command)?;
    if !matches!(options.suite.as_deref(), Some("api" | "store")) {
        guests::build_all()?;
    }
    Ok(())
}
