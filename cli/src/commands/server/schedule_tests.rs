//! What a scheduled snapshot holds, and which are kept.

use coracle_apiserver::encryption::Encryption;
use coracle_store::{Options, Txn, Value};
use tempfile::TempDir;

use super::super::archive;
use super::super::encryption::{FILE, sealer};
use super::super::membership::{Membership, SHARED_KEYS, write_keys};
use super::*;

const SECRET: &str = "/registry/core/secrets/default/door";

fn options(dir: &Path, sealer: Option<Arc<dyn coracle_store::Seal>>) -> Options {
    Options { sealer, ..Options::new(dir.join("store")) }
}

/// Keeps snapshots of the store in `dir`, in its folder `kept`. Its `pki` holds keys of the cluster's own.
async fn taker(dir: &TempDir, named: Option<&Path>) -> Taker {
    let pki = dir.path().join("pki");
    let mut keys: super::super::membership::Keys =
        SHARED_KEYS.iter().map(|name| ((*name).to_owned(), format!("secret of {name}"))).collect();
    keys.insert(FILE.to_owned(), Encryption::generate());
    write_keys(&pki, &keys).unwrap();
    let (sealer, encryption) = sealer(named, &pki, true).unwrap().unwrap();
    Taker {
        source: Source {
            store: Store::open(options(dir.path(), Some(sealer))).await.unwrap(),
            membership: Membership::first("10.96.0.0/12".parse().unwrap(), "10.0.0.0/16".parse().unwrap()),
            data_dir: dir.path().to_owned(),
            encryption: Some(encryption),
        },
        place: Arc::new(Place::open(dir.path().join("kept").to_str().unwrap(), None, "").unwrap()),
        keep: 3,
        passphrase: None,
    }
}

#[tokio::test]
async fn a_snapshot_carries_the_keys_that_are_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let named = dir.path().join("keys.yaml");
    std::fs::write(&named, Encryption::generate()).unwrap();
    let taker = taker(&dir, Some(&named)).await;
    let store = &taker.source.store;
    store.txn(Txn::put(SECRET.into(), Value::raw("kept"))).await.unwrap();
    // What the file says from now on counts after a restart.
    std::fs::write(&named, Encryption::generate()).unwrap();
    let file = dir.path().join("kept").join(taker.take().await.unwrap());
    store.shutdown().await.unwrap();

    let (new, state) = (tempfile::tempdir().unwrap(), dir.path().join("state"));
    let head = archive::unpack(&file, &state, None).unwrap();
    write_keys(&new.path().join("pki"), &head.keys).unwrap();
    Store::restore(&new.path().join("store"), &state, 1).await.unwrap();
    let (sealer, _) = sealer(None, &new.path().join("pki"), false).unwrap().unwrap();
    let restored = Store::open(options(new.path(), Some(sealer))).await.unwrap();
    assert_eq!(&restored.get(SECRET.as_bytes()).unwrap().value.json[..], b"kept");
    restored.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_goes_back_costs_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let taker = taker(&dir, None).await;
    // Those of a day that this machine's clock has not seen yet, and what is called nearly so.
    let ahead = |n: usize| format!("coracle-21000101T00000000{n}Z.snapshot");
    let others = ["coracle-21000101T000000.snapshot", "coracle-21010101T000000000Z.snapshot.part2"];
    for name in (1..=5).map(ahead).chain(others.map(str::to_owned)) {
        std::fs::write(dir.path().join("kept").join(name), "").unwrap();
    }
    let taken = [taker.take().await.unwrap(), taker.take().await.unwrap()];
    assert_eq!(taken, [ahead(6), ahead(7)]);
    let mut left = taker.place.list().await.unwrap();
    left.retain(|name| !others.contains(&name.as_str()));
    assert_eq!(left, [ahead(5), ahead(6), ahead(7)], "the newest three");
    taker.source.store.shutdown().await.unwrap();
}

#[test]
fn names_say_when() {
    let taken = |text: &str| super::taken(&format!("coracle-{text}.snapshot"));
    assert_eq!(taken("20260102T030405678Z").unwrap().to_string(), "2026-01-02T03:04:05.678Z");
    for text in ["", "20260102T030405Z", "20260102T0304056Z", "20261302T030405678Z", "20260102T030405678Zz"] {
        assert_eq!(taken(text), None, "{text}");
    }
    assert_eq!(super::taken("coracle-20260102T030405678Z.snapshot.part"), None);
}
