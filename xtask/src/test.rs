//! `cargo xtask test`: everything that CI runs, in the order that fails soonest.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;

use crate::process::{cargo, quiet, root, shown};
use crate::{guests, kubectl, languages, tidy};

#[derive(Args)]
pub struct Options {
    /// Leave out what is slow: end-to-end tests and crash points beyond a few.
    #[arg(long)]
    fast: bool,
    /// Passed on to the test runner, e.g. a test's name.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    install_missing(&PROGRAMS)?;
    step("tidy", started);
    tidy::run(&tidy::Options::default())?;
    step("guests", started);
    guests::build_all()?;
    if !options.fast {
        languages::build_all()?;
    }
    let clients = (kubectl::install()?, kubectl::python()?);
    step("build", started);
    run_tests(options, &clients)?;
    step("done", started);
    Ok(())
}

/// What the tests call and a bare machine may lack: programs, and the Debian packages that have them.
const PROGRAMS: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    ("script", "bsdutils"),
    ("curl", "curl"),
    ("nft", "nftables"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("chromium", "chromium"),
    ("chromedriver", "chromium-driver"),
];

/// Installs the packages of those programs that are not there.
pub fn install_missing(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| {
            quiet(Command::new("sh").args(["-c", &format!("command -v {program}")])).is_err()
        })
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    quiet(Command::new("apt-get").args(["-q", "update"]))?;
    quiet(Command::new("apt-get").args(["-q", "-y", "--no-install-recommends", "install"]).args(&missing))
        .with_context(|| format!("{} are needed", missing.join(", ")))
}

fn run_tests(options: &Options, (same, python): &(PathBuf, PathBuf)) -> Result<()> {
    shown(cargo().args(["build", "--workspace", "--bins"]).current_dir(root()))?;
    let (oldest, newest) = kubectl::oldest_and_newest()?;
    let mut command = cargo();
    command
        .args(["test", "--workspace", "--no-fail-fast"])
        .current_dir(root())
        .env("CORACLE_BIN", root().join("target/debug/coracle"))
        .env("CORACLE_GUESTS", guests::folder())
        .env("CORACLE_KUBECTL", same)
        .env("CORACLE_KUBECTL_OLDEST", oldest)
        .env("CORACLE_KUBECTL_NEWEST", newest)
        .env("CORACLE_PYTHON", python);
    if options.fast {
        command.args(["--exclude", "coracle-e2e"]).env("CORACLE_TEST_FAST", "1");
    }
    shown(command.arg("--").args(&options.rest))
}

fn step(name: &str, started: Instant) {
    eprintln!("== {name} ({} s)", started.elapsed().as_secs());
}
