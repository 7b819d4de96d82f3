//! The registry behind a real socket, driven by the oci-client crate, and call by call.

use std::sync::Arc;

use axum::body::Body;
use coracle_apiserver::UserInfo;
use coracle_store::{Options, Store};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower::ServiceExt;

const CONFIG_TYPE: &str = "application/vnd.wasm.config.v0+json";
const LAYER_TYPE: &str = "application/wasm";

struct Fixture {
    router: axum::Router,
    _folder: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().expect("folder");
    let store = Store::in_memory(&Options::new("unused"));
    let router =
        coracle_image_registry::ImageRegistry::open(folder.path()).expect("folders").router(store, None);
    Fixture { router, _folder: folder }
}

/// The caller that the API server would have found out.
fn known(router: axum::Router) -> axum::Router {
    router.layer(axum::Extension(UserInfo::new("admin", &["system:masters"])))
}

async fn call(
    router: &axum::Router,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (StatusCode, http::HeaderMap, Vec<u8>) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_vec())).expect("request");
    let Ok(response) = known(router.clone()).oneshot(request).await;
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, body.collect().await.expect("body").to_bytes().to_vec())
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn code_of(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    value["errors"][0]["code"].as_str().unwrap_or_default().to_string()
}

fn location(headers: &http::HeaderMap) -> String {
    headers.get("location").and_then(|v| v.to_str().ok()).expect("location").to_string()
}

#[tokio::test]
async fn a_wasm_artifact_goes_in_and_out() {
    let f = fixture();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address");
    let router = known(f.router.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    for monolithic in [true, false] {
        let config = ClientConfig {
            protocol: ClientProtocol::Http,
            use_monolithic_push: monolithic,
            ..ClientConfig::default()
        };
        let client = Client::new(config);
        let auth = RegistryAuth::Basic("user".into(), "token".into());
        let image: Reference =
            format!("{address}/library/hello:v{}", u8::from(monolithic)).parse().expect("reference");
        // More than one chunk of the client.
        let wasm: Vec<u8> = (0..6_000_000_u32).map(|i| (i % 251) as u8).collect();
        let layer = ImageLayer::new(wasm.clone(), LAYER_TYPE.into(), None);
        let config = Config::new(br#"{"architecture":"wasm"}"#.to_vec(), CONFIG_TYPE.into(), None);
        let pushed = client.push(&image, &[layer], config, &auth, None).await.expect("push");
        assert!(pushed.manifest_url.contains("/manifests/sha256:"), "{}", pushed.manifest_url);
        let pulled = client.pull(&image, &auth, vec![LAYER_TYPE]).await.expect("pull");
        assert_eq!(pulled.layers.first().map(|l| l.data.as_ref() == wasm.as_slice()), Some(true));
        assert_eq!(pulled.config.media_type, CONFIG_TYPE);
    }
    let (_, _, body) = call(&f.router, "GET", "/v2/library/hello/tags/list", &[], b"").await;
    assert_eq!(
        serde_json::from_slice::<Value>(&body).expect("json"),
        json!({"name": "library/hello", "tags": ["v0", "v1"]})
    );
    let (_, _, body) = call(&f.router, "GET", "/v2/_catalog", &[], b"").await;
    assert_eq!(
        serde_json::from_slice::<Value>(&body).expect("json"),
        json!({"repositories": ["library/hello"]})
    );
    serving.abort();
}

#[tokio::test]
async fn nobody_gets_in_without_a_name() {
    let f = fixture();
    for extension in [None, Some(UserInfo::anonymous())] {
        let router = match extension {
            Some(user) => f.router.clone().layer(axum::Extension(user)),
            None => f.router.clone(),
        };
        let Ok(response) = router.oneshot(Request::get("/v2/").body(Body::empty()).expect("request")).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()["www-authenticate"], "Basic realm=\"coracle\"");
        assert_eq!(response.headers()["docker-distribution-api-version"], "registry/2.0");
    }
    let (status, headers, _) = call(&f.router, "GET", "/v2/", &[], b"").await;
    assert_eq!(
        (status, &headers["docker-distribution-api-version"]),
        (StatusCode::OK, &"registry/2.0".parse().expect("value"))
    );
}

#[tokio::test]
async fn uploads_in_chunks() {
    let f = fixture();
    let (status, headers, _) = call(&f.router, "POST", "/v2/a/b/blobs/uploads/", &[], b"").await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let upload = location(&headers);
    let (status, headers, _) = call(&f.router, "PATCH", &upload, &[("content-range", "0-4")], b"hello").await;
    assert_eq!((status, &headers["range"]), (StatusCode::ACCEPTED, &"0-4".parse().expect("value")));
    // Out of order: refused, and nothing is lost.
    let (status, _, _) = call(&f.router, "PATCH", &upload, &[("content-range", "9-10")], b"xx").await;
    assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
    let (status, headers, _) = call(&f.router, "GET", &upload, &[], b"").await;
    assert_eq!((status, &headers["range"]), (StatusCode::NO_CONTENT, &"0-4".parse().expect("value")));
    let whole = digest(b"hello world");
    let (status, headers, _) =
        call(&f.router, "PUT", &format!("{upload}?digest={whole}"), &[("content-range", "5-10")], b" world")
            .await;
    assert_eq!((status, location(&headers)), (StatusCode::CREATED, format!("/v2/a/b/blobs/{whole}")));
    let blob = format!("/v2/a/b/blobs/{whole}");
    let (status, headers, body) = call(&f.router, "GET", &blob, &[], b"").await;
    assert_eq!(
        (status, body.as_slice(), &headers["docker-content-digest"]),
        (StatusCode::OK, &b"hello world"[..], &whole.parse().expect("value"))
    );
    let (status, headers, body) = call(&f.router, "GET", &blob, &[("range", "bytes=6-")], b"").await;
    assert_eq!(
        (status, body.as_slice(), &headers["content-range"]),
        (StatusCode::PARTIAL_CONTENT, &b"world"[..], &"bytes 6-10/11".parse().expect("value"))
    );
    let (status, headers, body) = call(&f.router, "HEAD", &blob, &[], b"").await;
    assert_eq!(
        (status, body.len(), &headers["content-length"]),
        (StatusCode::OK, 0, &"11".parse().expect("value"))
    );
    // Mounting what is here needs no upload.
    let (status, _, _) =
        call(&f.router, "POST", &format!("/v2/c/blobs/uploads/?mount={whole}&from=a/b"), &[], b"").await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn bad_input() {
    let f = fixture();
    let zeros = format!("sha256:{}", "0".repeat(64));
    let monolithic = format!("/v2/a/blobs/uploads/?digest={zeros}");
    let dangling = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"digest": zeros}, "layers": []}).to_string();
    let manifest_type = ("content-type", "application/vnd.oci.image.manifest.v1+json");
    let large = vec![b' '; coracle_image_registry::MANIFEST_MAX + 1];
    type Headers = Vec<(&'static str, &'static str)>;
    type Row<'a> = (&'a str, String, Headers, Vec<u8>, u16, &'a str);
    let table: Vec<Row> = vec![
        ("GET", format!("/v2/a/blobs/{zeros}"), vec![], vec![], 404, "BLOB_UNKNOWN"),
        ("GET", "/v2/a/blobs/sha256:x".into(), vec![], vec![], 400, "DIGEST_INVALID"),
        ("GET", "/v2/a/manifests/v1".into(), vec![], vec![], 404, "MANIFEST_UNKNOWN"),
        ("GET", "/v2/a/tags/list".into(), vec![], vec![], 404, "NAME_UNKNOWN"),
        ("GET", "/v2/A/tags/list".into(), vec![], vec![], 400, "NAME_INVALID"),
        ("GET", "/v2/a/../b/tags/list".into(), vec![], vec![], 400, "NAME_INVALID"),
        ("POST", monolithic, vec![], b"other".to_vec(), 400, "DIGEST_INVALID"),
        ("PATCH", "/v2/a/blobs/uploads/none".into(), vec![], vec![], 404, "BLOB_UPLOAD_UNKNOWN"),
        (
            "PUT",
            "/v2/a/manifests/v1".into(),
            vec![manifest_type],
            b"no json".to_vec(),
            400,
            "MANIFEST_INVALID",
        ),
        ("PUT", "/v2/a/manifests/v1".into(), vec![manifest_type], b"{}".to_vec(), 400, "MANIFEST_INVALID"),
        (
            "PUT",
            "/v2/a/manifests/v1".into(),
            vec![("content-type", "text/plain")],
            dangling.clone().into_bytes(),
            400,
            "MANIFEST_INVALID",
        ),
        (
            "PUT",
            "/v2/a/manifests/v1".into(),
            vec![manifest_type],
            dangling.into_bytes(),
            400,
            "MANIFEST_BLOB_UNKNOWN",
        ),
        ("PUT", "/v2/a/manifests/v1".into(), vec![manifest_type], large, 413, "SIZE_INVALID"),
        ("DELETE", format!("/v2/a/blobs/{zeros}"), vec![], vec![], 405, "UNSUPPORTED"),
        ("GET", "/v2/a".into(), vec![], vec![], 404, "UNSUPPORTED"),
    ];
    for (method, path, headers, body, status, code) in table {
        let (got, _, answer) = call(&f.router, method, &path, &headers, &body).await;
        assert_eq!((got.as_u16(), code_of(&answer).as_str()), (status, code), "{method} {path}");
    }
}

#[tokio::test]
async fn manifests_live_and_go() {
    let f = fixture();
    let config = b"{}";
    let (status, _, _) =
        call(&f.router, "POST", &format!("/v2/a/blobs/uploads/?digest={}", digest(config)), &[], config)
            .await;
    assert_eq!(status, StatusCode::CREATED);
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": CONFIG_TYPE, "digest": digest(config), "size": 2}, "layers": []})
    .to_string();
    let own = digest(manifest.as_bytes());
    for tag in ["v1", "v2"] {
        let (status, headers, _) =
            call(&f.router, "PUT", &format!("/v2/a/manifests/{tag}"), &[], manifest.as_bytes()).await;
        assert_eq!(
            (status, &headers["docker-content-digest"]),
            (StatusCode::CREATED, &own.parse().expect("value"))
        );
    }
    let (status, headers, body) = call(&f.router, "GET", "/v2/a/manifests/v1", &[], b"").await;
    assert_eq!((status, body), (StatusCode::OK, manifest.clone().into_bytes()));
    assert_eq!(headers["content-type"], "application/vnd.oci.image.manifest.v1+json");
    let (status, headers, body) = call(&f.router, "HEAD", &format!("/v2/a/manifests/{own}"), &[], b"").await;
    assert_eq!(
        (status, body.len(), headers["content-length"].to_str().ok()),
        (StatusCode::OK, 0, Some(manifest.len().to_string().as_str()))
    );
    assert_eq!(call(&f.router, "DELETE", "/v2/a/manifests/v1", &[], b"").await.0, StatusCode::ACCEPTED);
    assert_eq!(call(&f.router, "GET", "/v2/a/manifests/v1", &[], b"").await.0, StatusCode::NOT_FOUND);
    assert_eq!(call(&f.router, "GET", "/v2/a/manifests/v2", &[], b"").await.0, StatusCode::OK);
    assert_eq!(
        call(&f.router, "DELETE", &format!("/v2/a/manifests/{own}"), &[], b"").await.0,
        StatusCode::ACCEPTED
    );
    assert_eq!(call(&f.router, "GET", "/v2/a/manifests/v2", &[], b"").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn uploads_are_bounded() {
    let f = Arc::new(fixture());
    for _ in 0..coracle_image_registry::SESSIONS_MAX {
        assert_eq!(call(&f.router, "POST", "/v2/a/blobs/uploads/", &[], b"").await.0, StatusCode::ACCEPTED);
    }
    let (status, _, body) = call(&f.router, "POST", "/v2/a/blobs/uploads/", &[], b"").await;
    assert_eq!((status, code_of(&body).as_str()), (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"));
}

#[tokio::test]
async fn a_member_gets_blobs_and_manifests_from_another() {
    use coracle_image_registry::{Fetch, ImageRegistry, Pieces};
    use futures::StreamExt;
    let (one, two) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let store = Store::in_memory(&Options::new("unused"));
    let first = ImageRegistry::open(one.path()).expect("folders");
    let (here, there) = (first.router(store.clone(), None), first.member_router());
    let spoil = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let spoiled = spoil.clone();
    let fetch: Fetch = Arc::new(move |path| {
        let (there, spoiled) = (there.clone(), spoiled.clone());
        Box::pin(async move {
            let Ok(response) = there.oneshot(Request::get(&path).body(Body::empty()).ok()?).await;
            let status = response.status();
            let pieces = response.into_body().into_data_stream().map(move |piece| {
                match spoiled.load(std::sync::atomic::Ordering::SeqCst) {
                    true => Ok("something else".into()),
                    false => piece.map_err(std::io::Error::other),
                }
            });
            (status == StatusCode::OK).then(|| Box::pin(pieces) as Pieces)
        })
    });
    let second = ImageRegistry::open(two.path()).expect("folders");
    let other = second.router(store, Some(fetch));
    let blob = b"a layer";
    let path = format!("/v2/app/blobs/uploads/?digest={}", digest(blob));
    assert_eq!(call(&here, "POST", &path, &[], blob).await.0, StatusCode::CREATED);
    let path = format!("/v2/app/blobs/{}", digest(blob));
    // What does not match its digest is not served, and not kept.
    assert_eq!(call(&other, "GET", &path, &[], b"").await.0, StatusCode::INTERNAL_SERVER_ERROR);
    spoil.store(false, std::sync::atomic::Ordering::SeqCst);
    let (status, _, body) = call(&other, "GET", &path, &[], b"").await;
    assert_eq!((status, body.as_slice()), (StatusCode::OK, blob.as_slice()));
    let absent = format!("/v2/app/blobs/{}", digest(b"nowhere"));
    assert_eq!(call(&other, "GET", &absent, &[], b"").await.0, StatusCode::NOT_FOUND);
    // A manifest that is pushed at one makes the other gather its blobs.
    let layer = b"another layer";
    let path = format!("/v2/app/blobs/uploads/?digest={}", digest(layer));
    assert_eq!(call(&here, "POST", &path, &[], layer).await.0, StatusCode::CREATED);
    let described =
        |bytes: &[u8], kind: &str| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(blob, CONFIG_TYPE), "layers": [described(layer, LAYER_TYPE)],
    });
    let pushed = call(&here, "PUT", "/v2/app/manifests/v1", &[], manifest.to_string().as_bytes()).await;
    assert_eq!(pushed.0, StatusCode::CREATED, "{}", String::from_utf8_lossy(&pushed.2));
    let hex = digest(layer).trim_start_matches("sha256:").to_owned();
    let file = two.path().join("blobs/sha256").join(&hex[..2]).join(&hex);
    let gathered = async {
        while !file.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), gathered).await.expect("the blob is gathered");
}
