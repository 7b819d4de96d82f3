//! Archives: their images go to the built-in registry, and come from there.

use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use coracle_images::{Reference, archive};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use serde_json::{Value, json};

use super::layout;
use crate::kubeconfig::Cluster;

/// What the registry may answer for a tag.
const ACCEPT: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];

/// The most images of an index.
const MAX_IMAGES: usize = 64;

/// Pushes the images of an archive under their names, or the one image under `tag`.
pub async fn import(file: &Path, tag: Option<&str>, cluster: &Cluster) -> Result<()> {
    let dir = tempfile::tempdir().context("make a folder for the archive")?;
    let images = {
        let called = file.display().to_string();
        let (file, dir) = (file.to_owned(), dir.path().to_owned());
        tokio::task::spawn_blocking(move || match file.to_str() {
            Some("-") => Ok(archive::unpack(&called, io::stdin().lock(), &dir)?),
            _ => {
                let opened = File::open(&file).with_context(|| format!("read {called}"))?;
                Ok::<_, anyhow::Error>(archive::unpack(&called, opened, &dir)?)
            }
        })
        .await??
    };
    let several = images.iter().any(|image| Some(&image.entry) != images.first().map(|i| &i.entry));
    if several && tag.is_some() {
        let names: Vec<_> = images.iter().map(|i| i.name.as_deref().unwrap_or("(no name)")).collect();
        bail!("{} has several images ({}): leave --tag away", file.display(), names.join(", "));
    }
    let mut names: Vec<(String, &Value)> = Vec::new();
    match tag {
        Some(tag) => names.extend(images.first().map(|image| (tag.to_owned(), &image.entry))),
        None => {
            for image in &images {
                let name = image.name.as_deref().filter(|name| name.contains([':', '/', '@']));
                let name = name.with_context(|| {
                    format!("an image of {} has no name: give one with --tag", file.display())
                })?;
                let name = built_in(name).with_context(|| format!("an image of {}", file.display()))?;
                names.push((name, &image.entry));
            }
        }
    }
    for (name, entry) in names {
        let access = cluster.registry().await?;
        let digest = layout::push_entries(dir.path(), std::slice::from_ref(entry), &name, access).await?;
        super::super::print(format!("imported {name} ({digest})\n"))?;
    }
    Ok(())
}

/// What the built-in registry calls an image, as a node that pulls this name asks for it.
fn built_in(name: &str) -> Result<String> {
    let reference: Reference = name.parse()?;
    let Some(tag) = &reference.tag else {
        bail!("{name} is the name of a digest, under which nothing is kept: give a tag with --tag");
    };
    let repository = match reference.is_default_registry() {
        true => reference.mirror_repository().to_owned(),
        false => reference.repository_name(),
    };
    Ok(format!("{repository}:{tag}"))
}

/// Writes an image of the built-in registry, with all platforms that it has, into an archive.
pub async fn export(tag: &str, file: &Path, cluster: &Cluster) -> Result<()> {
    let access = cluster.registry().await?;
    let (name, client) = (super::reference(tag, &access)?, super::client(&access));
    let auth = RegistryAuth::Basic("coracle".into(), access.token);
    let dir = tempfile::tempdir().context("make a folder for the image")?;
    let blobs = dir.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let doing = |what: &str| format!("pull {what} of {tag} from {}", access.authority);
    let mut wanted = vec![(name.clone(), None)];
    let (mut top, mut manifests) = (None, Vec::new());
    while let Some((reference, kind)) = wanted.pop() {
        let pulled = client.pull_manifest_raw(&reference, &auth, &ACCEPT).await;
        let (bytes, digest) = pulled.with_context(|| doing("the manifest"))?;
        let manifest: Value = serde_json::from_slice(&bytes).with_context(|| doing("the manifest"))?;
        std::fs::write(blobs.join(hex(&digest)?), &bytes)?;
        let is_index = manifest["manifests"].is_array();
        let kind = kind.or_else(|| manifest["mediaType"].as_str().map(str::to_owned));
        let kind = kind.unwrap_or_else(|| ACCEPT[usize::from(is_index)].to_owned());
        top.get_or_insert_with(|| json!({"mediaType": kind, "digest": digest, "size": bytes.len()}));
        for entry in manifest["manifests"].as_array().into_iter().flatten().take(MAX_IMAGES) {
            let digest = entry["digest"].as_str().unwrap_or_default();
            let kind = entry["mediaType"].as_str().map(str::to_owned);
            wanted.push((name.clone_with_digest(format!("sha256:{}", hex(digest)?)), kind));
        }
        manifests.push(manifest);
        if manifests.len() > MAX_IMAGES {
            bail!("{tag} has more than {MAX_IMAGES} images");
        }
    }
    for blob in
        manifests.iter().flat_map(|m| m["layers"].as_array().into_iter().flatten().chain(m.get("config")))
    {
        let digest = blob["digest"].as_str().unwrap_or_default();
        let path = blobs.join(hex(digest)?);
        if path.is_file() {
            continue;
        }
        let descriptor = OciDescriptor {
            digest: digest.to_owned(),
            size: blob["size"].as_i64().unwrap_or_default(),
            ..OciDescriptor::default()
        };
        let out = tokio::fs::File::create(&path).await?;
        // The library compares what came with its digest.
        client.pull_blob(&name, &descriptor, out).await.with_context(|| doing(digest))?;
    }
    let mut top = top.with_context(|| doing("the manifest"))?;
    let whole: Reference = tag.parse()?;
    top["annotations"] = json!({"io.containerd.image.name": whole.to_string(),
        "org.opencontainers.image.ref.name": whole.tag.as_deref().unwrap_or("latest")});
    archive::write_layout(dir.path(), &[&top])?;
    if let Some(docker) = manifests.first().and_then(|m| archive::docker_manifest(&whole, m)) {
        std::fs::write(dir.path().join("manifest.json"), docker.to_string())?;
    }
    match file.to_str() {
        Some("-") => archive::pack(dir.path(), io::stdout().lock())?,
        _ => {
            let out = File::create(file).with_context(|| format!("create {}", file.display()))?;
            archive::pack(dir.path(), io::BufWriter::new(out))?;
            super::super::print(format!("exported {tag} to {}\n", file.display()))?;
        }
    }
    Ok(())
}

fn hex(digest: &str) -> Result<&str> {
    let hex = digest.strip_prefix("sha256:");
    let hex = hex.filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
    hex.with_context(|| format!("{digest:?} is not a sha256 digest"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_built_in_registry() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, built) in [
            ("docker.io/library/a:v1", "a:v1"),
            ("team/a", "team/a:latest"),
            (&format!("ghcr.io/team/a:v1@{digest}"), "ghcr.io/team/a:v1"),
        ] {
            assert_eq!(built_in(name).unwrap_or_else(|e| panic!("{name}: {e}")), built, "{name}");
        }
        let error = built_in(&format!("team/a@{digest}")).expect_err("it is not latest").to_string();
        assert!(error.contains("--tag"), "{error}");
    }
}
