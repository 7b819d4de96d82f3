//! Encryption at rest, through the whole server and a store on disk.

use std::path::Path;
use std::sync::Arc;

use coracle_apiserver::ApiServer;
use coracle_apiserver::encryption::Encryption;
use coracle_store::{Options, Store};
use serde_json::{Value, json};

use crate::fixture::*;

const PLAIN: &str = "hunter2-hunter2-hunter2";

/// A configuration under which ConfigMaps of the tests are sealed with these keys, the first one writing.
fn configuration(keys: &[(&str, u8)]) -> String {
    use base64::Engine;
    let keys: Vec<Value> = keys
        .iter()
        .map(|(name, byte)| {
            let secret = base64::engine::general_purpose::STANDARD.encode([*byte; 32]);
            json!({"aesgcm": {"keys": [{"name": name, "secret": secret}]}})
        })
        .chain([json!({"identity": {}})])
        .collect();
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["configmaps"], "providers": keys}],
    })
    .to_string()
}

async fn open(dir: &Path, keys: Option<&[(&str, u8)]>) -> Result<(ApiServer, Store), coracle_store::Error> {
    let sealer = keys.map(|keys| {
        let encryption = Encryption::parse(&configuration(keys)).expect("configuration");
        Arc::new(encryption) as Arc<dyn coracle_store::Seal>
    });
    let store = Store::open(Options { sealer, ..Options::new(dir) }).await?;
    let server = ApiServer::builder(Arc::new(store.clone())).resources(resources()).build();
    Ok((server, store))
}

/// Files below a directory that hold these bytes.
fn holding(dir: &Path, bytes: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).expect("file").windows(bytes.len()).any(|w| w == bytes.as_bytes())
            {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

async fn data(s: &ApiServer) -> String {
    get(s, &format!("{CONFIG_MAPS}/a")).await.text("/data/password").to_owned()
}

#[tokio::test]
async fn what_is_sealed_is_nowhere_in_the_open_and_keys_rotate() {
    let (dir, outside) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
    let path = format!("{CONFIG_MAPS}/a");
    let obj = json!({"metadata": {"name": "a"}, "data": {"password": PLAIN}});

    // Open first, so that the test can fail, and so that what lay open before is read on.
    let (s, store) = open(dir.path(), None).await.expect("store");
    assert_eq!(call(&s, "POST", CONFIG_MAPS, obj.clone()).await.code, 201);
    store.shutdown().await.expect("stop");
    assert!(!holding(dir.path(), PLAIN).is_empty());

    let (s, store) = open(dir.path(), Some(&[("one", 1)])).await.expect("store");
    assert_eq!(data(&s).await, PLAIN);
    let read = get(&s, &path).await;
    // The same object again is a write, for it lies open.
    let again = call(&s, "PUT", &path, read.body.clone()).await;
    assert_ne!(again.at("/metadata/resourceVersion"), read.at("/metadata/resourceVersion"));
    let same = call(&s, "PUT", &path, again.body.clone()).await;
    assert_eq!(same.at("/metadata/resourceVersion"), again.at("/metadata/resourceVersion"));
    store.shutdown().await.expect("stop");
    drop((s, store));

    // A new store, in which it never lay open.
    let dir = tempfile::tempdir().expect("dir");
    let (s, store) = open(dir.path(), Some(&[("one", 1)])).await.expect("store");
    assert_eq!(call(&s, "POST", CONFIG_MAPS, obj).await.code, 201);
    let list = get(&s, CONFIG_MAPS).await;
    assert_eq!(list.text("/items/0/data/password"), PLAIN);
    let snapshot = outside.path().join("snapshot");
    store.save_snapshot(&snapshot).await.expect("snapshot");
    store.shutdown().await.expect("stop");
    drop((s, store));
    assert_eq!(holding(dir.path(), PLAIN), Vec::<String>::new());
    assert_eq!(holding(outside.path(), PLAIN), Vec::<String>::new());
    assert!(!holding(outside.path(), "k8s:enc:aesgcm:v1:one:").is_empty());

    // Another key writes, the old one still reads; when all is written again, it can go.
    let (s, store) = open(dir.path(), Some(&[("two", 2), ("one", 1)])).await.expect("store");
    let read = get(&s, &path).await;
    assert_eq!(read.text("/data/password"), PLAIN);
    assert_eq!(call(&s, "PUT", &path, read.body).await.code, 200);
    store.compact(store.revision()).await.expect("compact");
    store.shutdown().await.expect("stop");
    drop((s, store));
    let (s, store) = open(dir.path(), Some(&[("two", 2)])).await.expect("store");
    assert_eq!(data(&s).await, PLAIN);
    store.shutdown().await.expect("stop");
    drop((s, store));
    assert_eq!(holding(dir.path(), PLAIN), Vec::<String>::new());

    // Without the key nothing is served, and the reason is said.
    for keys in [None, Some(&[("three", 3)][..])] {
        let refused = open(dir.path(), keys).await.map(drop).expect_err("no key").to_string();
        assert!(refused.contains("encrypt"), "{refused}");
    }
    let target = tempfile::tempdir().expect("dir");
    Store::restore(&target.path().join("new"), &snapshot, 1).await.expect("restore");
    let (s, _store) = open(&target.path().join("new"), Some(&[("one", 1)])).await.expect("store");
    assert_eq!(data(&s).await, PLAIN);
}
