//! `coracle compile-wasm IN OUT`: one compilation in a process of its own, so that it can be niced, limited and killed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The component or module.
    input: PathBuf,
    /// The native code to write.
    output: PathBuf,
}

pub fn run(options: &Options) -> Result<()> {
    let bytes = std::fs::read(&options.input).with_context(|| format!("read {}", options.input.display()))?;
    let compiled = coracle_wasm::compile::precompile(&bytes, &options.output)?;
    println!("{}", serde_json::to_string(&compiled)?);
    Ok(())
}
