//! The shim by itself, for the tests of this crate: `coracle-oci-shim FOLDER`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(1) else {
        eprintln!("usage: coracle-oci-shim FOLDER");
        return ExitCode::from(2);
    };
    match coracle_oci::shim::main(dir.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coracle-oci-shim: {error:#}");
            ExitCode::FAILURE
        }
    }
}
