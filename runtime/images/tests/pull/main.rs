//! Pulling from a registry in this process: order of mirrors, checks, limits, and refusals told apart.

mod certificates;
mod layers;
mod patience;
mod tokens;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coracle_images::{
    Credentials, Error, Limits, Mirror, Puller, RegistryConfig, SignaturePolicy, Store, Wanted,
};
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
    /// What came after the question mark of each request.
    queries: Vec<String>,
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
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let mut content = content.lock().unwrap();
    content.asked += 1;
    content.queries.push(query.unwrap_or_default());
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

fn router() -> (Arc<Mutex<Content>>, axum::Router) {
    let content = Arc::new(Mutex::new(Content::default()));
    let root = |state: State<_>, headers| serve(state, Path(String::new()), RawQuery(None), headers);
    let router = axum::Router::new()
        .route("/v2/", get(root))
        .route("/v2/{*path}", get(serve))
        .with_state(content.clone());
    (content, router)
}

impl Registry {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (content, router) = router();
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
async fn a_stand_in_is_told_for_whom() {
    let registry = Registry::start().await;
    let id = registry.push("hello", "v1", b"component");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("certs.d/reg.example");
    std::fs::create_dir_all(&folder).unwrap();
    let hosts = format!("[host.\"http://{}\"]", registry.address);
    std::fs::write(folder.join("hosts.toml"), hosts).unwrap();
    let config = RegistryConfig { host_dirs: vec![dir.path().join("certs.d")], ..RegistryConfig::default() };
    let puller = Puller::new(Arc::new(Store::open(&dir.path().join("store")).unwrap()), config);
    let pulled = puller.pull("reg.example/hello:v1", Wanted::WasmFirst, &Credentials::Anonymous).await;
    assert_eq!(pulled.unwrap().id, id);
    let content = registry.content.lock().unwrap();
    let told: Vec<_> = content.queries.iter().filter(|query| !query.is_empty()).collect();
    assert!(told.len() >= 2 && told.iter().all(|query| *query == "ns=reg.example"), "{:?}", content.queries);
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

/// A key as cosign makes one, and its public half in PEM.
fn key() -> (aws_lc_rs::signature::EcdsaKeyPair, String) {
    use aws_lc_rs::{encoding::AsDer as _, signature};
    use base64::Engine as _;
    use signature::KeyPair as _;
    let pair = signature::EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
    let der = pair.public_key().as_der().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    (pair, format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n"))
}

/// Signs `of` with a key, as the signature of `image`.
fn sign(registry: &Registry, image: &str, of: &str, pair: &aws_lc_rs::signature::EcdsaKeyPair) {
    use base64::Engine as _;
    let claim =
        json!({"critical": {"identity": {"docker-reference": ""}, "type": "cosign container image signature",
        "image": {"docker-manifest-digest": of}}, "optional": null})
        .to_string()
        .into_bytes();
    let signature = pair.sign(&aws_lc_rs::rand::SystemRandom::new(), &claim).unwrap();
    let signature = base64::engine::general_purpose::STANDARD.encode(signature.as_ref());
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest(b"{}")},
        "layers": [{"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": claim.len(),
            "digest": digest(&claim), "annotations": {"dev.cosignproject.cosign/signature": signature}}]});
    let mut content = registry.content.lock().unwrap();
    content.blobs.insert(digest(&claim), claim);
    content.put("team/app", &format!("{}.sig", image.replace(':', "-")), manifest.to_string().into_bytes());
}

#[tokio::test]
async fn only_what_is_signed_is_pulled_where_the_policy_wants_it() {
    let registry = Registry::start().await;
    let id = registry.push("team/app", "v1", b"wasm");
    registry.push("other/app", "v1", b"other");
    let (pair, pem) = key();
    let (stranger, _) = key();
    let signatures =
        vec![SignaturePolicy { repositories: format!("{}/team", registry.address), keys: vec![pem] }];
    let dir = tempfile::tempdir().unwrap();
    let config = RegistryConfig { signatures, ..RegistryConfig::default() };
    let puller = Puller::new(Arc::new(Store::open(dir.path()).unwrap()), config);
    let name = format!("{}/team/app:v1", registry.address);
    let pull = async |name: &str| match puller.pull(name, Wanted::WasmFirst, &Credentials::Anonymous).await {
        Ok(record) => record.id,
        Err(error) => error.to_string(),
    };
    let said = pull(&name).await;
    assert!(said.starts_with("SignatureValidationFailed: ") && said.contains("is not signed"), "{said}");
    for (of, by) in [(id.clone(), &stranger), (digest(b"another image"), &pair)] {
        sign(&registry, &id, &of, by);
        let said = pull(&name).await;
        assert!(said.contains("has no signature by a key"), "{said}");
    }
    assert!(puller.store().find(&name).unwrap().is_none());
    sign(&registry, &id, &id, &pair);
    assert_eq!(pull(&name).await, id);
    assert!(pull(&format!("{}/other/app:v1", registry.address)).await.starts_with("sha256:"));
}

/// A registry whose connections break after 1000 bytes of a blob; it answers ranges, or does not.
async fn breaking(blob: Vec<u8>, ranges: bool) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.wasm.config.v0+json", "size": 2, "digest": digest(b"{}")},
        "layers": [{"mediaType": "application/wasm", "size": blob.len(), "digest": digest(&blob)}]})
    .to_string();
    tokio::spawn(async move {
        let mut broken = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let range = head.lines().find_map(|l| l.strip_prefix("range: bytes=")).map(str::to_owned);
            let (body, whole) = match head.split_whitespace().nth(1).unwrap_or_default() {
                "/v2/" => (Vec::new(), true),
                path if path.contains("/manifests/") => (manifest.clone().into_bytes(), true),
                path if path.ends_with(&digest(b"{}")) => (b"{}".to_vec(), true),
                _ => {
                    log.lock().unwrap().push(range.clone().unwrap_or_default());
                    (blob.clone(), false)
                }
            };
            let from: usize = match range.filter(|_| ranges) {
                Some(range) => range.split('-').next().unwrap().parse().unwrap(),
                None => 0,
            };
            let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
            let length = body.len() - from;
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            // A registry without ranges breaks once only.
            let breaks = !whole && (ranges || broken == 0);
            broken += usize::from(breaks);
            let end = if breaks { body.len().min(from + 1000) } else { body.len() };
            stream.write_all(&body[from..end]).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_pull_goes_on_where_it_broke_off() {
    let blob: Vec<u8> = (0..3500_u32).map(|n| n as u8).collect();
    for (ranges, expected) in [(true, vec!["", "1000-", "2000-", "3000-"]), (false, vec!["", "1000-"])] {
        let (address, asked) = breaking(blob.clone(), ranges).await;
        let dir = tempfile::tempdir().unwrap();
        let puller = Puller::new(Arc::new(Store::open(dir.path()).unwrap()), RegistryConfig::default());
        let name = format!("{address}/app:v1");
        let record = puller.pull(&name, Wanted::WasmFirst, &Credentials::Anonymous).await.unwrap();
        assert_eq!(std::fs::read(puller.store().blob_path(&record.layer)).unwrap(), blob);
        assert_eq!(*asked.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn commands_come_beside_the_component() {
    let registry = Registry::start().await;
    let layer = |bytes: &[u8], name: Option<&str>| {
        registry.content.lock().unwrap().blobs.insert(digest(bytes), bytes.to_vec());
        let mut layer =
            json!({"mediaType": "application/wasm", "size": bytes.len(), "digest": digest(bytes)});
        if let Some(name) = name {
            layer["annotations"] = json!({"coracle.dev/command": name});
        }
        layer
    };
    let manifest = |layers: &[serde_json::Value]| {
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
            "config": {"mediaType": "application/vnd.wasm.config.v0+json", "size": 2, "digest": digest(b"{}")}})
        .to_string()
        .into_bytes()
    };
    registry.push("app", "plain", b"main");
    let good = manifest(&[layer(b"tool", Some("tool")), layer(b"main", None)]);
    let doubled = manifest(&[layer(b"main", None), layer(b"a", Some("tool")), layer(b"b", Some("tool"))]);
    for (tag, manifest) in [("good", good), ("doubled", doubled)] {
        registry.content.lock().unwrap().put("app", tag, manifest);
    }
    let dir = tempfile::tempdir().unwrap();
    let puller = Puller::new(Arc::new(Store::open(dir.path()).unwrap()), RegistryConfig::default());
    let pull = async |tag: &str| {
        let name = format!("{}/app:{tag}", registry.address);
        puller.pull(&name, Wanted::WasmFirst, &Credentials::Anonymous).await
    };
    let record = pull("good").await.unwrap();
    assert_eq!(record.layer, digest(b"main"));
    assert_eq!(record.commands, [("tool".to_owned(), digest(b"tool"))].into());
    puller.store().sweep().unwrap();
    assert_eq!(std::fs::read(puller.store().blob_path(&digest(b"tool"))).unwrap(), b"tool");
    assert!(pull("doubled").await.unwrap_err().to_string().contains("share a name"));
}
