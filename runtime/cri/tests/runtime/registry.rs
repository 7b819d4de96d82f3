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
        Some(bytes) => bytes.clone().into_response(),
        None => {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            (StatusCode::NOT_FOUND, body.to_string()).into_response()
        }
    }
}

impl Registry {
    /// Starts on a free port of this machine.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
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
        let config = b"{}".to_vec();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "size": 2, "digest": digest(&config)},
            "layers": [{"mediaType": "application/wasm", "size": wasm.len(), "digest": digest(wasm)}]})
        .to_string()
        .into_bytes();
        let mut content = self.content.lock().unwrap();
        for key in [tag, &digest(&manifest)] {
            content.insert(format!("{repository}/manifests/{key}"), manifest.clone());
        }
        content.insert(digest(&config), config);
        content.insert(digest(wasm), wasm.to_vec());
    }
}
