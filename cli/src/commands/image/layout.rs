//! Pushing OCI image layouts.

use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_client::secrets::RegistryAuth;

use crate::kubeconfig::RegistryAccess;

/// The most manifests and blobs of a layout, and the levels of indexes in it.
const MAX_ENTRIES: usize = 1024;

/// Pushes what the index of a layout names; an index of several becomes the tag's own.
pub async fn push(dir: &Path, tag: &str, access: RegistryAccess) -> Result<String> {
    let path = dir.join("index.json");
    let index = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let index: serde_json::Value =
        serde_json::from_slice(&index).with_context(|| format!("parse {}", path.display()))?;
    let entries = index["manifests"].as_array().context("the layout's index has no manifests")?;
    push_entries(dir, entries, tag, access).await
}

/// Pushes what some entries of a layout name.
pub async fn push_entries(
    dir: &Path,
    entries: &[serde_json::Value],
    tag: &str,
    access: RegistryAccess,
) -> Result<String> {
    let (reference, client) = (super::reference(tag, &access)?, super::client(&access));
    let auth = RegistryAuth::Basic("coracle".into(), access.token);
    client.store_auth_if_needed(reference.resolve_registry(), &auth).await;
    let (mut wanted, mut order) = (entries.to_vec(), Vec::new());
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
    let (top, kind) = match entries {
        [one] => (blob(dir, one)?.1, one["mediaType"].as_str().unwrap_or_default().to_owned()),
        several => {
            let kind = "application/vnd.oci.image.index.v1+json";
            let index = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": several});
            (serde_json::to_vec(&index)?, kind.to_owned())
        }
    };
    let digest = super::sha256(&top);
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
