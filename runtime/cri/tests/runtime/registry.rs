//! A read-only OCI registry in this process, filled by tests.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use sha2::Digest as _;

type Content = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// A running registry.
pub struct Registry {
    content: Content,
    pub address: SocketAddr,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

async fn serve(State(content): State<Content>, Path(path): Path<String>) -> Response {
    let key = match path.split_once("/blobs/") {
        Some((_, digest)) => digest.to_owned(),
        None => path,
    };
    match content.lock().unwrap().get(&key) {
        Some(bytes) => {
            // Clients believe the type of the answer before that in the manifest.
            let manifest = serde_json::from_slice::<serde_json::Value>(bytes).ok();
            let kind = manifest.as_ref().and_then(|m| m["mediaType"].as_str());
            let kind = kind.unwrap_or("application/octet-stream").to_owned();
            ([("content-type", kind)], bytes.clone()).into_response()
        }
        None => {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            (StatusCode::NOT_FOUND, body.to_string()).into_response()
        }
    }
}

impl Registry {
    /// Starts on a free port of this machine.
    pub async fn start() -> Self {
        Self::serve(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    /// Starts on a free port in a network namespace.
    pub async fn start_in(netns: std::path::PathBuf) -> Self {
        let bind = move || {
            let file = std::fs::File::open(netns).unwrap();
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::net::TcpListener::bind("127.0.0.1:0").unwrap()
        };
        let listener = std::thread::spawn(bind).join().unwrap();
        listener.set_nonblocking(true).unwrap();
        Self::serve(tokio::net::TcpListener::from_std(listener).unwrap())
    }

    fn serve(listener: tokio::net::TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let content = Content::default();
        let router = axum::Router::new()
            .route("/v2/", axum::routing::get(|| async {}))
            .route("/v2/{*path}", axum::routing::get(serve))
            .with_state(content.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { content, address }
    }

    /// Puts a component there.
    pub fn push(&self, repository: &str, tag: &str, wasm: &[u8]) {
        let kinds = ["application/vnd.wasm.config.v0+json", "application/wasm"];
        self.put(repository, tag, kinds, b"{}".to_vec(), wasm);
    }

    /// Puts a component there, and one beside it that can be run in its container.
    pub fn push_with_command(&self, repository: &str, tag: &str, wasm: &[u8], name: &str, command: &[u8]) {
        let mut manifest: serde_json::Value = {
            let kinds = ["application/vnd.wasm.config.v0+json", "application/wasm"];
            let bytes = self.put(repository, tag, kinds, b"{}".to_vec(), wasm);
            serde_json::from_slice(&bytes).unwrap()
        };
        let layer = json!({"mediaType": "application/wasm", "size": command.len(), "digest": digest(command),
            "annotations": {"coracle.dev/command": name}});
        manifest["layers"].as_array_mut().unwrap().push(layer);
        let mut content = self.content.lock().unwrap();
        content.insert(digest(command), command.to_vec());
        content.insert(format!("{repository}/manifests/{tag}"), manifest.to_string().into_bytes());
    }

    /// Writes an archive of a Linux image of busybox that sleeps, under this whole name.
    pub fn archive(path: &std::path::Path, name: &str) {
        let layer = busybox();
        let config = json!({"architecture": "amd64", "os": "linux",
            "config": {"Entrypoint": ["/bin/busybox", "sleep", "2147483647"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}})
        .to_string();
        let image =
            json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
        let mut archive = tar::Builder::new(std::fs::File::create(path).unwrap());
        for (name, bytes) in
            [("config.json", config.as_bytes()), ("layer.tar", &layer), ("manifest.json", image.as_bytes())]
        {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes).unwrap();
        }
        archive.finish().unwrap();
    }

    /// Puts a Linux image of busybox there.
    pub fn push_linux(&self, repository: &str, tag: &str) -> Vec<u8> {
        let layer = busybox();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["FROM=image"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}});
        let kinds = ["application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"];
        self.put(repository, tag, kinds, config.to_string().into_bytes(), &layer)
    }

    /// Puts an index there that offers a component and a Linux image.
    pub fn push_both(&self, repository: &str, tag: &str) {
        let wasm = crate::programs::wasm(crate::programs::WORKER);
        let kinds = ["application/vnd.wasm.config.v0+json", "application/wasm"];
        let manifests = [
            (self.push_linux(repository, "linux"), "linux", "amd64"),
            (self.put(repository, "wasm", kinds, b"{}".to_vec(), &wasm), "wasi", "wasm"),
        ];
        let manifests = manifests.map(|(bytes, os, architecture)| {
            json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": bytes.len(),
                "digest": digest(&bytes), "platform": {"os": os, "architecture": architecture}})
        });
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests})
        .to_string()
        .into_bytes();
        self.content.lock().unwrap().insert(format!("{repository}/manifests/{tag}"), index);
    }

    fn put(&self, repository: &str, tag: &str, kinds: [&str; 2], config: Vec<u8>, layer: &[u8]) -> Vec<u8> {
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": kinds[0], "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": kinds[1], "size": layer.len(), "digest": digest(layer)}]})
        .to_string()
        .into_bytes();
        let mut content = self.content.lock().unwrap();
        for key in [tag, &digest(&manifest)] {
            content.insert(format!("{repository}/manifests/{key}"), manifest.clone());
        }
        content.insert(digest(&config), config);
        content.insert(digest(layer), layer.to_vec());
        manifest
    }
}

/// A layer with Debian's busybox under the names of its applets.
fn busybox() -> Vec<u8> {
    let program = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut layer = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(program.len() as u64);
    layer.append_data(&mut header, "bin/busybox", program.as_slice()).unwrap();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    for applet in ["sh", "cat", "echo", "ip", "ping", "sleep", "stat", "true", "wc"] {
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    layer.into_inner().unwrap()
}
