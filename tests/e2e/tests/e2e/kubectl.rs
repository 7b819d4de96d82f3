//! Every subcommand of kubectl, at the oldest and at the newest release that can be had. Profile: loopback.

mod subcommands;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use coracle_e2e::{Cluster, Ended, shown, succeed};

use super::pods;

/// A kubectl of one release, and which of its subcommands were used.
struct Kubectl {
    path: PathBuf,
    cluster: Cluster,
    used: RefCell<BTreeSet<String>>,
}

impl Kubectl {
    /// The kubectl in an environment variable.
    fn of(variable: &str, cluster: Cluster) -> Result<Self> {
        let path: OsString = std::env::var_os(variable)
            .with_context(|| format!("{variable} is not set: run `cargo xtask test`"))?;
        Ok(Self { path: path.into(), cluster, used: RefCell::default() })
    }

    fn command(&self, args: &[&str]) -> Command {
        self.used.borrow_mut().extend(args.first().map(ToString::to_string));
        let mut command = self.cluster.command(&self.path);
        command.args(args).stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        succeed(&mut self.command(args))
    }

    /// Runs it and looks for words in what it says.
    fn says(&self, args: &[&str], words: &[&str]) -> Result<()> {
        pods::has(&self.run(args)?, words).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// Runs it and expects this exit code.
    fn exits(&self, code: i32, args: &[&str]) -> Result<String> {
        let out = self.command(args).output()?;
        ensure!(out.status.code() == Some(code), "kubectl {}: {}", args.join(" "), shown(&out));
        Ok(shown(&out))
    }

    /// Every subcommand that `kubectl --help` lists was used.
    fn used_all(&self) -> Result<()> {
        let help = self.run(&["--help"])?;
        let listed = help.lines().filter_map(|line| line.strip_prefix("  "));
        let listed = listed.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        let names: Vec<&str> =
            listed.filter_map(|line| line.split(' ').next()).filter(|n| *n != "kubectl").collect();
        ensure!(names.len() > 35, "{help}");
        let used = self.used.borrow();
        let missing: Vec<_> = names.into_iter().filter(|name| !used.contains(*name)).collect();
        if missing.is_empty() { Ok(()) } else { bail!("not tried: {missing:?}") }
    }
}

fn every_subcommand(variable: &str) -> Result<Ended> {
    let (cluster, node) = pods::cluster(&["steps", "switch", "hello"])?;
    let mut kubectl = Kubectl::of(variable, cluster)?;
    subcommands::about_the_cluster(&kubectl, &node)?;
    subcommands::objects(&kubectl)?;
    subcommands::workloads(&kubectl)?;
    subcommands::pods(&kubectl, &node)?;
    subcommands::access(&kubectl)?;
    subcommands::nodes(&kubectl, &node)?;
    kubectl.used_all()?;
    kubectl.cluster.stop()
}

/// Row: clients: kubectl of the oldest release there is: every subcommand of its help
#[test]
fn the_oldest_kubectl_does_everything() -> Result<Ended> {
    every_subcommand("CORACLE_KUBECTL_OLDEST")
}

/// Row: clients: kubectl of the newest release there is: every subcommand of its help
#[test]
fn the_newest_kubectl_does_everything() -> Result<Ended> {
    every_subcommand("CORACLE_KUBECTL_NEWEST")
}
