//! How large layers may be, and how long they may take.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use futures::StreamExt as _;

use super::*;

/// The manifest of a Linux image of one layer.
fn linux(layer: &[u8]) -> String {
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest(b"{}")},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": layer.len(), "digest": digest(layer)}]})
    .to_string()
}

fn puller_within(dir: &std::path::Path, mirrors: Vec<Mirror>, limits: Limits) -> Puller {
    let config = RegistryConfig { mirrors, default_registry: None, limits, ..RegistryConfig::default() };
    Puller::new(Arc::new(Store::open(dir).unwrap()), config)
}

#[tokio::test]
async fn layers_of_linux_images_may_be_larger_than_components() {
    let registry = Registry::start().await;
    let layer = vec![7; 5000];
    {
        let mut content = registry.content.lock().unwrap();
        content.blobs.extend([(digest(b"{}"), b"{}".to_vec()), (digest(&layer), layer.clone())]);
        content.put("app", "v1", linux(&layer).into_bytes());
    }
    registry.push("component", "v1", &layer);
    let pull = async |name: &str, limits: Limits| {
        let dir = tempfile::tempdir().unwrap();
        let puller = puller_within(dir.path(), vec![registry.mirror()], limits);
        puller.pull(name, Wanted::WasmFirst, &Credentials::Anonymous).await.map(|record| record.layers.len())
    };
    let small = Limits { layer_bytes: 1000, ..Limits::default() };
    assert_eq!(pull("app:v1", small).await.unwrap(), 1);
    assert!(pull("component:v1", small).await.unwrap_err().to_string().contains("1000 is the most"));
    let both = Limits { linux_layer_bytes: 4000, ..small };
    assert!(pull("app:v1", both).await.unwrap_err().to_string().contains("4000 is the most"));
    assert!(Limits::default().linux_layer_bytes >= 10 << 30);
}

/// What a registry does with a layer.
#[derive(Clone, Copy)]
enum Manner {
    /// Sends it byte by byte.
    Slow,
    /// Sends half of it, and nothing more; the rest when it is asked for that.
    Stalls,
    /// Does not answer.
    Silent,
}

async fn registry(layer: Vec<u8>, manner: Manner) -> (Mirror, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let handler = move |Path(path): Path<String>, headers: HeaderMap| {
        let (layer, count) = (layer.clone(), count.clone());
        async move {
            if path.contains("/manifests/") {
                return linux(&layer).into_response();
            }
            if path.ends_with(&digest(b"{}")) {
                return "{}".into_response();
            }
            count.fetch_add(1, Ordering::SeqCst);
            let half = layer.len() / 2;
            let pieces = |bytes: Vec<u8>| {
                futures::stream::iter(bytes.into_iter().map(|b| Ok::<_, std::io::Error>(vec![b])))
            };
            match manner {
                Manner::Slow => {
                    let pause = |piece| async {
                        tokio::time::sleep(Duration::from_millis(250)).await;
                        piece
                    };
                    Body::from_stream(pieces(layer).then(pause)).into_response()
                }
                Manner::Stalls if headers.contains_key("range") => {
                    (StatusCode::PARTIAL_CONTENT, layer[half..].to_vec()).into_response()
                }
                Manner::Stalls => {
                    Body::from_stream(pieces(layer[..half].to_vec()).chain(futures::stream::pending()))
                        .into_response()
                }
                Manner::Silent => std::future::pending().await,
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mirror = Mirror { url: format!("http://{}", listener.local_addr().unwrap()), ..Mirror::default() };
    let router = axum::Router::new().route("/v2/", get(async || {})).route("/v2/{*path}", get(handler));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (mirror, asked)
}

#[tokio::test]
async fn a_pull_may_take_long_as_long_as_something_comes() {
    let limits = Limits { idle_seconds: 3, ..Limits::default() };
    let pull = async |manner| {
        let (mirror, asked) = registry(vec![7; 16], manner).await;
        let dir = tempfile::tempdir().unwrap();
        let puller = puller_within(dir.path(), vec![mirror], limits);
        let pulled = puller.pull("app:v1", Wanted::Linux, &Credentials::Anonymous).await;
        (pulled.map(|record| record.layers.len()), asked.load(Ordering::SeqCst))
    };
    let (slow, stalls, silent) = tokio::join!(pull(Manner::Slow), pull(Manner::Stalls), pull(Manner::Silent));
    assert_eq!((slow.0.unwrap(), slow.1), (1, 1), "four seconds in all");
    assert_eq!((stalls.0.unwrap(), stalls.1), (1, 2), "it goes on where it stalled");
    assert!(silent.0.unwrap_err().to_string().contains("no answer within 3 s"));
}
