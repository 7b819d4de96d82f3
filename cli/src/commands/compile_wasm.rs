//! `coracle compile-wasm IN OUT`: one compilation in a process of its own, so that it can be niced, limited and killed.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

#[derive(Args)]
pub struct Options {
    /// The component or module.
    input: PathBuf,
    /// The native code to write.
    output: PathBuf,
}

pub fn run(options: &Options) -> ExitCode {
    coracle_cri::compile::child_main(&options.input, &options.output)
}
