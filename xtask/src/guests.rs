//! Builds the wasm programs: the examples and the tests' guests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{quiet, root};
use crate::toolchain;

/// Builds every guest; returns the component files, `target/guests/<name>.wasm`.
pub fn build_all() -> Result<Vec<PathBuf>> {
    let toolchain = toolchain::ensure()?;
    // All workspaces build into one folder, so each finds the other's too.
    let mut built = BTreeSet::new();
    for workspace in
        ["examples/hello", "examples/operator", "examples/gpu-infer", "examples/linked", "tests/guests"]
    {
        let dir = root().join(workspace);
        if dir.join("Cargo.toml").is_file() {
            built.extend(build(&dir, toolchain)?);
        }
    }
    Ok(built.into_iter().collect())
}

/// The folder that holds every built guest.
pub fn folder() -> PathBuf {
    root().join("target/guests")
}

fn build(dir: &Path, toolchain: Option<&str>) -> Result<Vec<PathBuf>> {
    let out = folder();
    let mut command = Command::new("cargo");
    if let Some(name) = toolchain {
        command.arg(format!("+{name}"));
    }
    command
        .args(["build", "--release", "--locked", "--target", "wasm32-wasip2", "--target-dir"])
        .arg(out.join("build"))
        .current_dir(dir)
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC");
    quiet(&mut command).with_context(|| format!("build the guests of {}", dir.display()))?;
    let mut built = Vec::new();
    for entry in std::fs::read_dir(out.join("build/wasm32-wasip2/release"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "wasm") {
            let name = path.file_name().context("a built file without a name")?;
            let target = out.join(name.to_string_lossy().replace('_', "-"));
            std::fs::copy(&path, &target)?;
            built.push(target);
        }
    }
    Ok(built)
}
