//! `coracle image`: build a guest and push it to the built-in registry as a CNCF wasm artifact; push OCI image layouts.

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
    if file.is_dir() {
        let digest = push_layout(file, tag, access).await?;
        return super::print(format!("pushed {tag} ({digest})\n"));
    }
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    if !bytes.starts_with(b"\0asm") || bytes.len() < 8 {
        bail!("{} is not a wasm file (a component or a core module in binary form)", file.display());
    }
    let (reference, client) = (reference(tag, &access)?, client(&access));
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

/// The most manifests and blobs of a layout, and the levels of indexes in it.
const MAX_ENTRIES: usize = 1024;

/// Pushes what the index of a layout names; an index of several becomes the tag's own.
async fn push_layout(dir: &Path, tag: &str, access: RegistryAccess) -> Result<String> {
    let (reference, client) = (reference(tag, &access)?, client(&access));
    let auth = RegistryAuth::Basic("coracle".into(), access.token);
    client.store_auth_if_needed(reference.resolve_registry(), &auth).await;
    let path = dir.join("index.json");
    let index = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let index: serde_json::Value =
        serde_json::from_slice(&index).with_context(|| format!("parse {}", path.display()))?;
    let entries = index["manifests"].as_array().context("the layout's index has no manifests")?;
    let (mut wanted, mut order) = (entries.clone(), Vec::new());
    // What is named goes before what names it.
    while let Some(entry) = wanted.pop() {
        if order.len() >= MAX_ENTRIES {
            bail!("the layout has more than {MAX_ENTRIES} entries");
        }
        let (digest, bytes) = blob(dir, &entry)?;
        let kind = entry["mediaType"].as_str().unwrap_or_default();
        if kind.contains("manifest") || kind.contains("image.index") {
            let manifest: serde_json::Value = serde_json::from_slice(&bytes)?;
            let inner = ["manifests", "layers"].map(|k| manifest[k].as_array().cloned().unwrap_or_default());
            wanted.extend(inner.into_iter().flatten());
            wanted.extend(manifest.get("config").cloned());
            order.push((digest, bytes, Some(kind.to_owned())));
        } else {
            order.push((digest, bytes, None));
        }
    }
    for (digest, bytes, kind) in order.into_iter().rev() {
        let doing = || format!("push {digest} to {}", access.authority);
        match kind {
            None => drop(client.push_blob(&reference, bytes, &digest).await.with_context(doing)?),
            Some(kind) => {
                let by_digest = reference.clone_with_digest(digest.clone());
                let kind = kind.parse().context("the media type of a manifest")?;
                client.push_manifest_raw(&by_digest, bytes, kind).await.with_context(doing)?;
            }
        }
    }
    let (top, kind) = match entries.as_slice() {
        [one] => (blob(dir, one)?.1, one["mediaType"].as_str().unwrap_or_default().to_owned()),
        _ => (serde_json::to_vec(&index)?, "application/vnd.oci.image.index.v1+json".to_owned()),
    };
    let digest = sha256(&top);
    let kind = kind.parse().context("the media type of a manifest")?;
    client.push_manifest_raw(&reference, top, kind).await.with_context(|| format!("push {tag}"))?;
    Ok(digest)
}

/// The digest of an entry, and the blob that it names.
fn blob(dir: &Path, entry: &serde_json::Value) -> Result<(String, Vec<u8>)> {
    let digest = entry["digest"].as_str().context("an entry of the layout has no digest")?;
    let hex =
        digest.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.chars().all(|c| c.is_ascii_hexdigit()));
    let hex = hex.with_context(|| format!("{digest:?} is not a sha256 digest"))?;
    let path = dir.join("blobs/sha256").join(hex);
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok((digest.to_owned(), bytes))
}

/// The version field of a binary says whether it is a component (layer 1) or a core module (layer 0).
fn is_component(bytes: &[u8]) -> bool {
    bytes.get(6..8) == Some(&[1, 0])
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
