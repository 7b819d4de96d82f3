//! Layers come beside each other, and how far they are is told.

use std::sync::atomic::{AtomicUsize, Ordering};

use coracle_images::Progress;

use super::*;

/// Answers layers only while another one is asked for; says how many were asked for at once.
async fn meeting(blobs: Vec<Vec<u8>>) -> (SocketAddr, Arc<AtomicUsize>, Arc<tokio::sync::Semaphore>) {
    let layers: Vec<_> = blobs
        .iter()
        .map(|b| {
            json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "size": b.len(), "digest": digest(b)})
        })
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": digest(b"{}")},
        "layers": layers})
    .to_string();
    let (most, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Semaphore::new(0)));
    let (seen, open) = (most.clone(), gate.clone());
    let now = Arc::new(AtomicUsize::new(0));
    let handler = move |Path(path): Path<String>| {
        let (manifest, blobs) = (manifest.clone(), blobs.clone());
        let (now, seen, open) = (now.clone(), seen.clone(), open.clone());
        async move {
            if path.contains("/manifests/") {
                return manifest.into_response();
            }
            if path.ends_with(&digest(b"{}")) {
                return "{}".into_response();
            }
            seen.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            open.acquire().await.unwrap().forget();
            now.fetch_sub(1, Ordering::SeqCst);
            blobs.into_iter().find(|b| path.ends_with(&digest(b))).unwrap().into_response()
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().route("/v2/", get(async || {})).route("/v2/{*path}", get(handler));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, most, gate)
}

#[tokio::test]
async fn a_few_layers_are_fetched_at_once() {
    let blobs: Vec<Vec<u8>> = (0..7_u8).map(|n| vec![n; 1000]).collect();
    let (address, most, gate) = meeting(blobs).await;
    let dir = tempfile::tempdir().unwrap();
    let puller = Puller::new(Arc::new(Store::open(dir.path()).unwrap()), RegistryConfig::default());
    let name = format!("{address}/app:v1");
    assert_eq!(puller.progress(&name), None);
    let pull = tokio::spawn({
        let (puller, name) = (puller.clone(), name.clone());
        async move { puller.pull(&name, Wanted::Linux, &Credentials::Anonymous).await }
    });
    // None is answered before three are asked for.
    while most.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(puller.progress(&name), Some(Progress { received: 2, total: 7002 }), "the configuration");
    gate.add_permits(1);
    while puller.progress(&name).is_some_and(|p| p.received < 1002) {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    gate.add_permits(100);
    let record = pull.await.unwrap().unwrap();
    assert_eq!((record.layers.len(), record.size > 7002), (7, true));
    assert_eq!(most.load(Ordering::SeqCst), 3, "no more at once than that");
    assert_eq!(puller.progress(&name), None);
}
