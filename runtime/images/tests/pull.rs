//! Pulling from a registry in this process: order of mirrors, checks, limits, and refusals told apart.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coracle_images::{Credentials, Error, Limits, Mirror, Puller, RegistryConfig, Store, Wanted};
use serde_json::json;
use sha2::Digest as _;

#[derive(Default)]
struct Content {
    /// `repository/tag or digest` to bytes.
    manifests: HashMap<String, Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    /// The Authorization header that is wanted.
    wanted: Option<String>,
    asked: usize,
}

#[derive(Clone)]
struct Registry {
    content: Arc<Mutex<Content>>,
    address: SocketAddr,
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}

async fn serve(
    State(content): State<Arc<Mutex<Content>>>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> Response {
    let mut content = content.lock().unwrap();
    content.asked += 1;
    let shown = headers.get("authorization").and_then(|h| h.to_str().ok()).map(str::to_owned);
    if content.wanted.is_some() && shown != content.wanted {
        return (StatusCode::UNAUTHORIZED, [("www-authenticate", "Basic realm=\"r\"")]).into_response();
    }
    if path.is_empty() {
        return StatusCode::OK.into_response();
    }
    let found = match path.split_once("/manifests/") {
        Some((repository, key)) => content.manifests.get(&format!("{repository}/{key}")),
        None => path.split_once("/blobs/").and_then(|(_, digest)| content.blobs.get(digest)),
    };
    match found {
        Some(bytes) => bytes.clone().into_response(),
        None => {
            let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
            (StatusCode::NOT_FOUND, body.to_string()).into_response()
        }
    }
}

impl Registry {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let content = Arc::new(Mutex::new(Content::default()));
        let root = |state: State<_>, headers| serve(state, Path(String::new()), headers);
        let router = axum::Router::new()
            .route("/v2/", get(root))
            .route("/v2/{*path}", get(serve))
            .with_state(content.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { content, address }
    }

    fn push(&self, repository: &str, tag: &str, wasm: &[u8]) -> String {
        let config = b"{}".to_vec();
        let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "size": 2, "digest": digest(&config)},
            "layers": [{"mediaType": "application/wasm", "size": wasm.len(), "digest": digest(wasm)}]});
        let mut content = self.content.lock().unwrap();
        content.blobs.insert(digest(&config), config);
        content.blobs.insert(digest(wasm), wasm.to_vec());
        content.put(repository, tag, manifest.to_string().into_bytes())
    }

    fn mirror(&self) -> Mirror {
        Mirror { url: format!("http://{}", self.address), ..Mirror::default() }
    }
}

impl Content {
    fn put(&mut self, repository: &str, tag: &str, manifest: Vec<u8>) -> String {
        let id = digest(&manifest);
        for key in [tag, &id] {
            self.manifests.insert(format!("{repository}/{key}"), manifest.clone());
        }
        id
    }
}

fn puller(dir: &std::path::Path, mirrors: Vec<Mirror>) -> Puller {
    let config = RegistryConfig { mirrors, default_registry: None, ..RegistryConfig::default() };
    Puller::new(Arc::new(Store::open(dir).unwrap()), config)
}

/// Nobody listens there: the port was free a moment ago, on an address of its own.
fn nobody() -> Mirror {
    let listener = std::net::TcpListener::bind("127.75.255.1:0").unwrap();
    Mirror { url: format!("http://{}", listener.local_addr().unwrap()), ..Mirror::default() }
}

#[tokio::test]
async fn the_first_mirror_that_has_it_wins() {
    let (first, second) = (Registry::start().await, Registry::start().await);
    let id = second.push("hello", "v1", b"component");
    let dir = tempfile::tempdir().unwrap();
    let puller = puller(dir.path(), vec![nobody(), first.mirror(), second.mirror()]);
    let record = puller.pull("hello:v1", Wanted::WasmFirst, &Credentials::Anonymous).await.unwrap();
    assert_eq!(record.id, id);
    assert_eq!(record.source, second.address.to_string());
    assert!(record.tags.contains("docker.io/library/hello:v1"));
    assert_eq!(puller.store().read(&record.layer).unwrap(), b"component");

    let asked = second.content.lock().unwrap().asked;
    let same = puller.pull(&format!("hello@{id}"), Wanted::WasmFirst, &Credentials::Anonymous).await.unwrap();
    assert_eq!(same.id, id);
    assert_eq!(second.content.lock().unwrap().asked, asked, "a digest that is here needs no registry");

    let moved = second.push("hello", "v1", b"another");
    let record = puller.pull("hello:v1", Wanted::WasmFirst, &Credentials::Anonymous).await.unwrap();
    assert_eq!(record.id, moved);
    assert!(puller.store().find(&id).unwrap().unwrap().tags.is_empty());
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let registry = Registry::start().await;
    registry.push("hello", "v1", b"component");
    let dir = tempfile::tempdir().unwrap();
    let puller = puller(dir.path(), vec![registry.mirror()]);
    let anonymous = Credentials::Anonymous;

    let error = puller.pull("hello:v9", Wanted::WasmFirst, &anonymous).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("hello:v9"), "{error}");
    let error = puller.pull("Hello", Wanted::WasmFirst, &anonymous).await.unwrap_err();
    assert!(matches!(error, Error::InvalidReference { .. }), "{error}");
    let (authority, _) = (nobody().url.replace("http://", ""), ());
    let error =
        puller.pull(&format!("{authority}/hello:v1"), Wanted::WasmFirst, &anonymous).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");

    registry.content.lock().unwrap().wanted = Some("Bearer right".into());
    let named = format!("{}/hello:v1", registry.address);
    for (given, right) in [
        (anonymous, false),
        (Credentials::Bearer("wrong".into()), false),
        (Credentials::Bearer("right".into()), true),
    ] {
        match puller.pull(&named, Wanted::WasmFirst, &given).await {
            Ok(_) => assert!(right, "{given:?}"),
            Err(error) => assert!(!right && matches!(error, Error::Unauthorized { .. }), "{error}"),
        }
    }
    registry.content.lock().unwrap().wanted = Some("Basic dTpw".into());
    let basic = Credentials::Basic { username: "u".into(), password: "p".into() };
    puller.pull(&named, Wanted::WasmFirst, &basic).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_or_too_large_is_not_kept() {
    let registry = Registry::start().await;
    registry.push("bad", "v1", b"component");
    registry.content.lock().unwrap().blobs.insert(digest(b"component"), b"tampered!".to_vec());
    registry.push("long", "v1", b"short");
    registry.content.lock().unwrap().blobs.insert(digest(b"short"), vec![0; 4096]);
    registry.push("large", "v1", &[7; 100_000]);
    {
        let mut content = registry.content.lock().unwrap();
        content.put(
            "linux",
            "v1",
            json!({"schemaVersion": 2, "manifests": [{"size": 1, "digest": digest(b"x"),
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "platform": {"os": "linux", "architecture": "s390x"}}]})
            .to_string()
            .into_bytes(),
        );
        content.put("nonsense", "v1", b"<html>".to_vec());
    }
    let dir = tempfile::tempdir().unwrap();
    let config = RegistryConfig {
        mirrors: vec![registry.mirror()],
        default_registry: None,
        limits: Limits { layer_bytes: 50_000, ..Limits::default() },
        ..RegistryConfig::default()
    };
    let puller = Puller::new(Arc::new(Store::open(dir.path()).unwrap()), config);
    for (name, words) in [
        ("bad:v1", "digest"),
        ("long:v1", "longer"),
        ("large:v1", "50000 is the most"),
        ("linux:v1", "linux/s390x"),
        ("nonsense:v1", "not JSON"),
    ] {
        let error =
            puller.pull(name, Wanted::WasmFirst, &Credentials::Anonymous).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(name), "{name}: {error}");
    }
    assert!(puller.store().list().is_empty());
    puller.store().sweep().unwrap();
    assert_eq!(puller.store().usage().unwrap().inodes, 0);
}

#[tokio::test]
async fn an_index_leads_to_its_wasm_entry() {
    let registry = Registry::start().await;
    let id = registry.push("hello", "wasm", b"component");
    let index = json!({"schemaVersion": 2, "manifests": [
        {"size": 1, "digest": digest(b"x"), "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "platform": {"os": "linux", "architecture": "amd64"}},
        {"size": 1, "digest": id, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "platform": {"os": "wasi", "architecture": "wasm"}}]});
    let top = registry.content.lock().unwrap().put("hello", "v1", index.to_string().into_bytes());
    let dir = tempfile::tempdir().unwrap();
    let puller = puller(dir.path(), vec![registry.mirror()]);
    let record = puller.pull("hello:v1", Wanted::WasmFirst, &Credentials::Anonymous).await.unwrap();
    assert_eq!(record.id, id);
    assert_eq!(puller.store().find(&format!("hello@{top}")).unwrap().unwrap().id, id);
}
