//! The wasm32-wasip2 target for Rust guests.
//!
//! `rustup target add` first. Where that cannot reach its server, a guest toolchain is put together from Debian's
//! packages (compiler and std of one version, wasi-libc, linker of the host toolchain) and linked to rustup as
//! [`LINKED`]. It is made once a machine and lies in the cache directory. `CORACLE_GUEST_TOOLCHAIN=debian` skips rustup.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{cache, output, quiet, shown};

/// The rustup name of the toolchain that is put together here.
const LINKED: &str = "coracle-guest";
const TARGET: &str = "wasm32-wasip2";
/// Raised when the recipe below changes, so that an older result is made anew.
const RECIPE: u32 = 2;

/// The rustup toolchain that builds guests; `None` is the default toolchain.
pub fn ensure() -> Result<Option<&'static str>> {
    let debian = std::env::var_os("CORACLE_GUEST_TOOLCHAIN").is_some_and(|choice| choice == "debian");
    if !debian && native_target_works() {
        return Ok(None);
    }
    let dir = cache()?.join("guest-toolchain");
    let stamp = dir.join("stamp");
    let current = fs::read_to_string(&stamp).is_ok_and(|text| text == RECIPE.to_string());
    let linked = output(Command::new("rustup").args(["toolchain", "list"]))?.contains(LINKED);
    if !(current && linked) {
        eprintln!(
            "guests: no rustup target {TARGET} here; putting a toolchain together from Debian's packages"
        );
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        assemble(&dir)?;
        fs::write(&stamp, RECIPE.to_string())?;
    }
    Ok(Some(LINKED))
}

fn native_target_works() -> bool {
    let installed = || {
        output(Command::new("rustc").args(["--print", "sysroot"])).is_ok_and(|sysroot| {
            Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET).join("lib").is_dir()
        })
    };
    installed() || (quiet(Command::new("rustup").args(["target", "add", TARGET])).is_ok() && installed())
}

fn assemble(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let unpacked = dir.join("unpacked");
    download(dir, &unpacked)?;
    let sysroot = dir.join("sysroot");
    lay_out(&unpacked, &sysroot)?;
    shown(Command::new("rustup").args(["toolchain", "link", LINKED]).arg(&sysroot))?;
    build_std(dir, &sysroot)?;
    fs::remove_dir_all(&unpacked)?;
    fs::remove_dir_all(sysroot.join("lib/rustlib/src"))?;
    Ok(())
}

/// Downloads and unpacks the packages with apt lists of our own; the system's sources stay untouched.
fn download(dir: &Path, unpacked: &Path) -> Result<()> {
    let apt = dir.join("apt");
    let debs = dir.join("debs");
    for folder in [apt.join("lists/partial"), apt.join("cache/archives/partial"), debs.clone()] {
        fs::create_dir_all(folder)?;
    }
    let (main, security) = mirrors()?;
    let signed = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
    fs::write(
        apt.join("sources.list"),
        format!("deb {signed} {main} forky main\ndeb {signed} {security} bookworm-security main\n"),
    )?;
    let options = [
        format!("Dir::Etc::sourcelist={}", apt.join("sources.list").display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", apt.join("lists").display()),
        format!("Dir::Cache={}", apt.join("cache").display()),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let with_options = |program: &str| {
        let mut command = Command::new(program);
        for option in &options {
            command.args(["-o", option]);
        }
        command.current_dir(&debs);
        command
    };
    quiet(with_options("apt-get").arg("update")).context("apt-get update with forky's list")?;
    let depends = output(with_options("apt-cache").args(["depends", "libstd-rust-web-dev"]))?;
    let std_package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("libstd-rust-web-"))
        .context("libstd-rust-web-dev names no std package")?;
    let mut fetch = with_options("apt-get");
    fetch.arg("download").arg("wasi-libc/forky");
    for package in ["rustc-web", std_package, "libstd-rust-web-dev", "libllvm22", "rust-web-src"] {
        fetch.arg(format!("{package}/bookworm-security"));
    }
    quiet(&mut fetch)?;
    for deb in fs::read_dir(&debs)? {
        quiet(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(unpacked))?;
    }
    fs::remove_dir_all(&debs)?;
    fs::remove_dir_all(&apt)?;
    Ok(())
}

/// The configured Debian mirrors: (archive, security archive).
fn mirrors() -> Result<(String, String)> {
    let find = |suffix: &str, excluded: &str| -> Result<Option<String>> {
        let targets = output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(SITE) $(RELEASE)",
            "Created-By: Packages",
        ]))?;
        Ok(targets.lines().find_map(|line| {
            let (site, release) = line.split_once(' ')?;
            (release.ends_with(suffix) && (excluded.is_empty() || !release.ends_with(excluded)))
                .then(|| site.to_owned())
        }))
    };
    if find("", "-security")?.is_none() {
        shown(Command::new("apt-get").args(["-q", "update"]))?;
    }
    let main = find("", "-security")?.context("apt knows no Debian archive (apt-get indextargets)")?;
    let security = find("-security", "")?.context("apt knows no Debian security archive")?;
    Ok((main, security))
}

fn lay_out(unpacked: &Path, sysroot: &Path) -> Result<()> {
    let (usr, lib) = (unpacked.join("usr"), sysroot.join("lib"));
    fs::create_dir_all(sysroot.join("bin"))?;
    fs::create_dir_all(&lib)?;
    fs::rename(usr.join("bin/rustc"), sysroot.join("bin/rustc"))?;
    for entry in fs::read_dir(usr.join("lib/x86_64-linux-gnu"))? {
        let entry = entry?;
        let name = entry.file_name();
        if ["librustc_driver", "libLLVM"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            fs::rename(entry.path(), lib.join(name))?;
        }
    }
    let rustlib = lib.join("rustlib");
    fs::rename(usr.join("lib/rustlib"), &rustlib)?;
    let sources = fs::read_dir(usr.join("src"))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rustc-")))
        .context("rust-web-src holds no usr/src/rustc-*")?;
    fs::create_dir_all(rustlib.join("src"))?;
    if rustlib.join("src/rust").symlink_metadata().is_ok() {
        fs::remove_file(rustlib.join("src/rust"))?;
    }
    fs::rename(sources, rustlib.join("src/rust"))?;
    link_linkers(&rustlib)?;
    let own = rustlib.join(TARGET).join("lib/self-contained");
    fs::create_dir_all(&own)?;
    for object in ["crt1-command.o", "crt1-reactor.o", "libc.a"] {
        fs::copy(usr.join("lib").join(TARGET).join(object), own.join(object))
            .with_context(|| format!("wasi-libc's {object}"))?;
    }
    Ok(())
}

fn link_linkers(rustlib: &Path) -> Result<()> {
    let host = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let from = PathBuf::from(host.trim()).join("lib/rustlib/x86_64-unknown-linux-gnu/bin");
    let to = rustlib.join("x86_64-unknown-linux-gnu/bin");
    fs::create_dir_all(&to)?;
    for tool in ["rust-lld", "wasm-component-ld", "gcc-ld"] {
        if !from.join(tool).exists() {
            bail!("the host toolchain has no {} (needed to link guests)", from.join(tool).display());
        }
        let link = to.join(tool);
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        symlink(from.join(tool), link)?;
    }
    Ok(())
}

/// Builds std for the target once and keeps its libraries in the sysroot.
fn build_std(dir: &Path, sysroot: &Path) -> Result<()> {
    let empty = dir.join("empty");
    fs::create_dir_all(empty.join("src"))?;
    fs::write(
        empty.join("Cargo.toml"),
        "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[profile.release]\nlto = \"off\"\n[workspace]\n",
    )?;
    fs::write(empty.join("src/main.rs"), "fn main() {}\n")?;
    quiet(
        Command::new("cargo")
            .arg(format!("+{LINKED}"))
            .args(["build", "--release", "--target", TARGET, "-Zbuild-std=std,panic_abort"])
            .current_dir(&empty)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("CARGO")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("CARGO_TARGET_DIR"),
    )
    .context("build std for the guests")?;
    let lib = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    for entry in fs::read_dir(empty.join("target").join(TARGET).join("release/deps"))? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".rlib") && !name.starts_with("libempty") {
            fs::copy(&path, lib.join(name))?;
        }
    }
    fs::remove_dir_all(&empty)?;
    Ok(())
}
