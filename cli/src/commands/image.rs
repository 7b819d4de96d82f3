//! `coracle image`: build a guest and push it to the built-in registry as a CNCF wasm artifact; push OCI image layouts;
//! import and export archives.

mod archive;
mod layout;

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use oci_client::Reference;
use oci_client::client::{
    Certificate, CertificateEncoding, ClientConfig, ClientProtocol, Config, ImageLayer,
};
use oci_client::secrets::RegistryAuth;

use crate::kubeconfig::{Cluster, RegistryAccess};

/// The media types of the CNCF wasm artifact layout.
const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";

#[derive(Subcommand)]
pub enum Command {
    /// Build a Rust guest and push it.
    Build {
        /// The guest's folder, with its Cargo.toml.
        folder: PathBuf,
        /// The name to push as, such as `hello:v1`.
        #[arg(short, long)]
        tag: String,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Push a component, a core module, or an image of any kind.
    Push {
        /// The .wasm file, or the folder of an OCI image layout (with its index.json).
        file: PathBuf,
        /// The name to push as, such as `hello:v1`.
        tag: String,
        /// Another component to put beside it, which `kubectl exec` runs by this name.
        #[arg(long = "command", value_name = "NAME=FILE", value_parser = named)]
        commands: Vec<(String, PathBuf)>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Push the images of an archive: a tar with an OCI image layout, or what `docker save` writes.
    Import {
        /// The archive (tar; plain, gzip or zstd); `-` for standard input.
        file: PathBuf,
        /// The name to push as, where the archive has one image; otherwise the names in it.
        #[arg(short, long)]
        tag: Option<String>,
        #[command(flatten)]
        cluster: Cluster,
    },
    /// Write an image into an archive: a tar with an OCI image layout, which `docker load` reads too.
    Export {
        /// The image, such as `hello:v1`.
        tag: String,
        /// The archive to write; `-` for standard output.
        file: PathBuf,
        #[command(flatten)]
        cluster: Cluster,
    },
}

/// `NAME=FILE` of a command beside a program.
fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => Ok((name.to_owned(), file.into())),
        _ => Err(format!("{text:?} is not NAME=FILE")),
    }
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Build { folder, tag, cluster } => {
            let file = build(&folder)?;
            super::run_client(push(&file, &tag, &[], &cluster))
        }
        Command::Push { file, tag, commands, cluster } => {
            super::run_client(push(&file, &tag, &commands, &cluster))
        }
        Command::Import { file, tag, cluster } => {
            super::run_client(archive::import(&file, tag.as_deref(), &cluster))
        }
        Command::Export { tag, file, cluster } => super::run_client(archive::export(&tag, &file, &cluster)),
    }
}

/// Builds the one binary of a guest's crate with the wasm target that is installed.
fn build(folder: &Path) -> Result<PathBuf> {
    let manifest = folder.join("Cargo.toml");
    if !manifest.is_file() {
        bail!(
            "{} has no Cargo.toml: give the folder of a Rust guest, or push a .wasm file",
            folder.display()
        );
    }
    let linked = Process::new("rustup").args(["toolchain", "list"]).output();
    let own = linked.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains("coracle-guest"));
    let mut cargo = Process::new("cargo");
    if own {
        cargo.arg("+coracle-guest");
    }
    cargo
        .args(["build", "--release", "--target", "wasm32-wasip2", "--message-format=json-render-diagnostics"])
        .current_dir(folder)
        .stderr(std::process::Stdio::inherit());
    let built = cargo.output().context("start cargo")?;
    if !built.status.success() {
        bail!(
            "building {} failed ({}); is the wasm32-wasip2 target installed (cargo xtask guests)?",
            folder.display(),
            built.status
        );
    }
    let artifacts: Vec<PathBuf> = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .collect();
    match artifacts.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("{} built no binary", folder.display()),
        _ => bail!("{} built several binaries: push the one you mean", folder.display()),
    }
}

/// On the layer of a component that is run by this name beside the program.
const COMMAND: &str = coracle_images::manifest::COMMAND;

async fn push(file: &Path, tag: &str, commands: &[(String, PathBuf)], cluster: &Cluster) -> Result<()> {
    let access = cluster.registry().await?;
    if file.is_dir() {
        if !commands.is_empty() {
            bail!("--command is for a .wasm file; {} is a folder", file.display());
        }
        let digest = layout::push(file, tag, access).await?;
        return super::print(pushed_as(tag, &digest));
    }
    let bytes = wasm(file)?;
    let (reference, client) = (reference(tag, &access)?, client(&access));
    let os = if is_component(&bytes) { "wasip2" } else { "wasip1" };
    let mut layers = vec![ImageLayer::new(bytes, LAYER_TYPE.into(), None)];
    for (name, file) in commands {
        let annotations = [(COMMAND.to_owned(), name.clone())].into();
        layers.push(ImageLayer::new(wasm(file)?, LAYER_TYPE.into(), Some(annotations)));
    }
    let names: std::collections::BTreeSet<_> = commands.iter().map(|(name, _)| name).collect();
    if names.len() != commands.len() {
        bail!("two commands share a name");
    }
    let config = serde_json::json!({
        "created": jiff::Timestamp::now().to_string(),
        "architecture": "wasm",
        "os": os,
        "layerDigests": layers.iter().map(ImageLayer::sha256_digest).collect::<Vec<_>>(),
    });
    let config = Config::new(serde_json::to_vec(&config)?, CONFIG_TYPE.into(), None);
    let auth = RegistryAuth::Basic("coracle".into(), access.token);
    let pushed = async {
        client.push(&reference, &layers, config, &auth, None).await?;
        client.fetch_manifest_digest(&reference, &auth).await
    };
    let digest = pushed.await.with_context(|| format!("push {tag} to {}", access.authority))?;
    super::print(pushed_as(tag, &digest))
}

fn wasm(file: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    if !bytes.starts_with(b"\0asm") || bytes.len() < 8 {
        bail!("{} is not a wasm file (a component or a core module in binary form)", file.display());
    }
    let mut validator = wasmparser::Validator::new_with_features(wasmparser::WasmFeatures::all());
    validator.validate_all(&bytes).with_context(|| format!("{} is no whole wasm file", file.display()))?;
    Ok(bytes)
}

/// What was pushed, and where to if the name tells of another registry: nodes look here first.
fn pushed_as(tag: &str, digest: &str) -> String {
    let elsewhere =
        tag.split_once('/').is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
    let to = if elsewhere { " to the cluster's own registry" } else { "" };
    format!("pushed {tag}{to} ({digest})\n")
}

fn reference(tag: &str, access: &RegistryAccess) -> Result<Reference> {
    let named = format!("{}/{tag}", access.authority).parse();
    named.with_context(|| format!("{tag:?} is not an image name such as hello:v1"))
}

fn client(access: &RegistryAccess) -> oci_client::Client {
    let certificate = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::Der, data: data.clone() };
    oci_client::Client::new(ClientConfig {
        protocol: ClientProtocol::Https,
        tls_certs_only: access.ca_der.iter().map(certificate).collect(),
        ..ClientConfig::default()
    })
}

/// The version field of a binary says whether it is a component (layer 1) or a core module (layer 0).
fn is_component(bytes: &[u8]) -> bool {
    bytes.get(6..8) == Some(&[1, 0])
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
