//! Linux images made by tests from Debian's busybox-static, as OCI image layouts.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The names that the test image's busybox goes by.
const APPLETS: [&str; 22] = [
    "sh", "cat", "echo", "env", "grep", "head", "hostname", "httpd", "id", "ip", "ls", "nc", "nslookup",
    "ping", "sleep", "stty", "tar", "touch", "tr", "true", "wc", "wget",
];

fn put(dir: &Path, bytes: &[u8], kind: &str) -> Result<Value> {
    use sha2::Digest as _;
    let hex = hex::encode(sha2::Sha256::digest(bytes));
    std::fs::write(dir.join("blobs/sha256").join(&hex), bytes)?;
    Ok(json!({"mediaType": kind, "size": bytes.len(), "digest": format!("sha256:{hex}")}))
}

/// Writes an image of busybox with this `config` (`{"Cmd": [...]}`) to the folder `dir`, for `coracle image push`.
///
/// # Errors
/// When busybox-static is not installed, or the folder cannot be written.
pub fn busybox(dir: &Path, config: Value) -> Result<()> {
    std::fs::create_dir_all(dir.join("blobs/sha256"))?;
    let program =
        std::fs::read("/bin/busybox").context("busybox-static is not installed: run `cargo xtask setup`")?;
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(program.len() as u64);
    layer.append_data(&mut header, "bin/busybox", program.as_slice())?;
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    for applet in APPLETS {
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    layer.append_data(&mut header, "tmp", &[][..])?;
    let layer = put(dir, &layer.into_inner()?, "application/vnd.oci.image.layer.v1.tar")?;
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let image = json!({"architecture": architecture, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}});
    let config = put(dir, image.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json")?;
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [layer]});
    let manifest = put(dir, manifest.to_string().as_bytes(), kind)?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    Ok(())
}
