//! `coracle image`: build a guest and push it to the built-in registry as a CNCF wasm artifact.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use oci_client::client::{
    Certificate, CertificateEncoding, ClientConfig, ClientProtocol, Config, ImageLayer,
};
use oci_client::secrets::RegistryAuth;

use crate::kubeconfig::Cluster;

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
    /// Push a component or a core module.
    Push {
        /// The .wasm file.
        file: PathBuf,
        /// The name to push as, such as `hello:v1`.
        tag: String,
        #[command(flatten)]
        cluster: Cluster,
    },
}

pub fn run(command: Command) -> Result<()> {
    match command {
        Command::Build { folder, tag, cluster } => {
            let file = build(&folder)?;
            super::run_client(push(&file, &tag, &cluster))
        }
        Command::Push { file, tag, cluster } => super::run_client(push(&file, &tag, &cluster)),
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

async fn push(file: &Path, tag: &str, cluster: &Cluster) -> Result<()> {
    let access = cluster.registry().await?;
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    if !bytes.starts_with(b"\0asm") || bytes.len() < 8 {
        bail!("{} is not a wasm file (a component or a core module in binary form)", file.display());
    }
    let reference = format!("{}/{tag}", access.authority)
        .parse()
        .with_context(|| format!("{tag:?} is not an image name such as hello:v1"))?;
    let client = oci_client::Client::new(ClientConfig {
        protocol: ClientProtocol::Https,
        tls_certs_only: access
            .ca_der
            .into_iter()
            .map(|data| Certificate { encoding: CertificateEncoding::Der, data })
            .collect(),
        ..ClientConfig::default()
    });
    let digest = sha256(&bytes);
    let config = serde_json::json!({
        "created": jiff::Timestamp::now().to_string(),
        "architecture": "wasm",
        "os": if is_component(&bytes) { "wasip2" } else { "wasip1" },
        "layerDigests": [digest],
    });
    let layer = ImageLayer::new(bytes, LAYER_TYPE.into(), None);
    let config = Config::new(serde_json::to_vec(&config)?, CONFIG_TYPE.into(), None);
    let auth = RegistryAuth::Basic("coracle".into(), access.token);
    client
        .push(&reference, &[layer], config, &auth, None)
        .await
        .with_context(|| format!("push {tag} to {}", access.authority))?;
    super::print(format!("pushed {tag} ({digest})\n"))
}

/// The version field of a binary says whether it is a component (layer 1) or a core module (layer 0).
fn is_component(bytes: &[u8]) -> bool {
    bytes.get(6..8) == Some(&[1, 0])
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
