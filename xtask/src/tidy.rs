//! `cargo xtask tidy`: what reviewers would otherwise repeat.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{cargo, quiet, root};

#[derive(Args, Default)]
pub struct Options {
    /// Leave out clippy, which compiles.
    #[arg(long)]
    quick: bool,
}

/// No source file may be longer; split along a noun the field already uses.
const LONGEST_FILE: usize = 700;
/// Names that say nothing about what lives behind them.
const BANNED: [&str; 4] = ["util", "common", "helpers", "misc"];
/// Kinds that the generic API server must not name in its sources.
const KINDS: [&str; 6] =
    ["ReplicaSet", "Deployment", "EndpointSlice", "ConfigMap", "ServiceAccount\"", "DaemonSet"];

pub fn run(options: &Options) -> Result<()> {
    quiet(cargo().args(["fmt", "--all", "--check"]).current_dir(root())).context("cargo fmt --all")?;
    let mut faults = Vec::new();
    for file in sources(&root())? {
        check_file(&file, &mut faults)?;
    }
    check_docs(&mut faults)?;
    if let Err(error) = crate::compat::check() {
        faults.push(format!("{error:#}"));
    }
    if !faults.is_empty() {
        bail!("{} things to tidy:\n{}", faults.len(), faults.join("\n"));
    }
    if !options.quick {
        quiet(
            cargo()
                .args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])
                .current_dir(root()),
        )?;
    }
    Ok(())
}

/// Every Rust file below a folder, but what is built or hidden.
pub fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    Ok(found)
}

fn check_file(path: &Path, faults: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let shown = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        faults.push(format!("{shown}: {lines} lines, at most {LONGEST_FILE}"));
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if BANNED.contains(&stem.as_str()) || stem == "mod" {
        faults.push(format!("{shown}: the name says nothing"));
    }
    if shown.starts_with("control-plane/apiserver/src") && stem != "tests" {
        // Tests need some kind to try things on.
        let code = text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
        for (number, line) in code.enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(kind) = KINDS.iter().find(|kind| code.contains(**kind)) {
                faults.push(format!("{shown}:{}: the API server names a kind, {kind}", number + 1));
            }
        }
    }
    Ok(())
}

/// Every path in the map of ARCHITECTURE.md exists.
fn check_docs(faults: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let map =
        text.lines().skip_while(|line| *line != "## Map").skip(1).take_while(|line| !line.starts_with("## "));
    for line in map.filter(|line| line.starts_with("| `")) {
        let path = line.split('`').nth(1).unwrap_or_default();
        if !root().join(path).exists() {
            faults.push(format!("ARCHITECTURE.md names {path}, which does not exist"));
        }
    }
    Ok(())
}
