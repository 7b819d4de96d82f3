//! The shim by itself, for the tests of this crate: `coracle-oci-shim [--pause | --pause-init] FOLDER`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let said = |word: &str| words.iter().any(|w| w == word);
    let Some(dir) = words.last() else {
        eprintln!("usage: coracle-oci-shim FOLDER");
        return ExitCode::from(2);
    };
    let pause = coracle_oci::pause::from_arguments(said("--pause"), said("--pause-init"), dir.as_ref());
    match pause.unwrap_or_else(|| coracle_oci::shim::main(dir.as_ref())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-oci-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}
