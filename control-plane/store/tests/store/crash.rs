//! Power failures: after each one everything that was acknowledged is there, with its revisions, and nothing is torn.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coracle_store::{Compare, Error, Op, Options, Range, Store, Txn, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use coracle_simulation::disk::Disk;

const WRITERS: u64 = 4;

/// What a writer knows of one of its keys: value and revision, or nothing.
type Known = Option<(String, u64)>;

/// What may be found at a key after a crash: what was acknowledged last, or what was asked for since and not answered.
#[derive(Clone, Debug, Default)]
struct Expected {
    acknowledged: Known,
    /// The value asked for (`None`: its deletion).
    in_doubt: Option<Option<String>>,
}

#[derive(Default)]
struct Model {
    keys: BTreeMap<String, Expected>,
    /// The highest revision that anyone was told.
    revision: u64,
}

fn options(dir: &Path, disk: &Arc<Disk>) -> Options {
    // Small, so that snapshots, purging and trimming take part, and a journal that is full.
    Options {
        history: 60,
        snapshot_every: 40,
        log_bytes: 64 << 10,
        files: Some(disk.clone()),
        ..Options::new(dir)
    }
}

/// Lets the power fail at `points` points in turn, on one disk. An error says what was wrong after which.
async fn survive(disk: Arc<Disk>, points: u64, seed: u64) -> Result<u64, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut written = 0;
    for point in 0..points {
        // Some fail while the store opens, most while it writes.
        disk.fail_after(rng.random_range(0..if point % 4 == 0 { 30 } else { 400 }));
        match Store::open(options(dir.path(), &disk)).await {
            Ok(store) => {
                written += write(&store, &disk, &mut model, rng.random()).await;
                let _ = timeout(store.shutdown()).await?;
            }
            Err(error) if disk.is_dead() => drop(error),
            Err(error) => return Err(format!("point {point}: open failed: {error}")),
        }
        disk.cut();
        disk.restart(rng.random());
        let store = match Store::open(options(dir.path(), &disk)).await {
            Ok(store) => store,
            Err(error) => return Err(format!("point {point}: open failed after the crash: {error}")),
        };
        verify(&store, &mut model).await.map_err(|what| format!("point {point}: {what}"))?;
        if rng.random_bool(0.5) {
            store.shutdown().await.map_err(|error| format!("point {point}: shutdown failed: {error}"))?;
        } else {
            // Its tasks find out that the disk is gone.
            disk.cut();
            let _ = timeout(store.shutdown()).await?;
            disk.restart(rng.random());
        }
    }
    Ok(written)
}

async fn timeout<T>(future: impl Future<Output = T>) -> Result<T, String> {
    tokio::time::timeout(Duration::from_secs(20), future).await.map_err(|_| "the store hangs".into())
}

/// Writes from several tasks until the power fails; returns the number of acknowledged writes.
async fn write(store: &Store, disk: &Arc<Disk>, model: &mut Model, seed: u64) -> u64 {
    let tasks = (0..WRITERS).map(|writer| {
        let prefix = format!("/{writer}/");
        let mine =
            model.keys.range(prefix.clone()..format!("/{writer}0")).map(|(k, v)| (k.clone(), v.clone()));
        let keys = mine.collect();
        tokio::spawn(writer_task(store.clone(), disk.clone(), prefix, keys, seed ^ writer))
    });
    let mut count = 0;
    for task in tasks.collect::<Vec<_>>() {
        let (keys, revision, acknowledged) = task.await.unwrap();
        model.keys.extend(keys);
        model.revision = model.revision.max(revision);
        count += acknowledged;
    }
    count
}

type Keys = BTreeMap<String, Expected>;

async fn writer_task(
    store: Store,
    disk: Arc<Disk>,
    prefix: String,
    mut keys: Keys,
    seed: u64,
) -> (Keys, u64, u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut revision, mut acknowledged) = (0, 0);
    while !disk.is_dead() && acknowledged < 200 {
        let key = format!("{prefix}{}", rng.random_range(0..12));
        let expected = keys.entry(key.clone()).or_default();
        let at = bytes::Bytes::from(key);
        let (txn, value) = if expected.acknowledged.is_some() && rng.random_bool(0.2) {
            (Txn { success: vec![Op::Delete { key: at }], ..Txn::default() }, None)
        } else {
            // Some are too much for the journal.
            let most = if rng.random_bool(0.02) { 40_000 } else { 3000 };
            let text = format!("{}:{}", rng.random::<u64>(), "x".repeat(rng.random_range(0..most)));
            (Txn::put(at, Value::raw(text.clone())), Some(text))
        };
        expected.in_doubt = Some(value.clone());
        match tokio::time::timeout(Duration::from_secs(8), store.txn(txn)).await {
            Ok(Ok(response)) => {
                *expected = Expected { acknowledged: value.map(|v| (v, response.revision)), in_doubt: None };
                revision = revision.max(response.revision);
                acknowledged += 1;
            }
            Ok(Err(Error::Stopped(_))) => break,
            Ok(Err(error)) => panic!("unexpected: {error}"),
            Err(_) => panic!("a write hangs after the disk failed"),
        }
        if rng.random_bool(0.02) {
            let _ = store.compact(revision.saturating_sub(10)).await;
        }
        if rng.random_bool(0.005) {
            let _ = store.defragment().await;
        }
    }
    (keys, revision, acknowledged)
}

/// Compares the store with what was acknowledged, then takes what it holds as the truth.
async fn verify(store: &Store, model: &mut Model) -> Result<(), String> {
    let all = store.range(&Range::prefix("")).map_err(|error| error.to_string())?;
    let mut found: BTreeMap<String, (String, u64)> = BTreeMap::new();
    for kv in &all.kvs {
        let value = String::from_utf8_lossy(&kv.value.json).into_owned();
        if kv.mod_revision > store.revision() || kv.create_revision > kv.mod_revision {
            return Err(format!("{:?} has impossible revisions", kv.key));
        }
        found.insert(String::from_utf8_lossy(&kv.key).into_owned(), (value, kv.mod_revision));
    }
    if store.revision() < model.revision {
        return Err(format!(
            "revision {} was acknowledged, the store is at {}",
            model.revision,
            store.revision()
        ));
    }
    if let Some(key) = found.keys().find(|key| !model.keys.contains_key(*key) && *key != "/probe") {
        return Err(format!("{key} was never written"));
    }
    for (key, expected) in &mut model.keys {
        let now = found.get(key).cloned();
        let happened = match &expected.in_doubt {
            Some(value) => *value == now.as_ref().map(|(value, _)| value.clone()),
            None => false,
        };
        if now != expected.acknowledged && !happened {
            let short = |known: &Known| {
                known.as_ref().map(|(v, r)| format!("{}@{r}", v.split(':').next().unwrap_or("")))
            };
            return Err(format!(
                "{key} is {:?}, acknowledged was {:?}",
                short(&now),
                short(&expected.acknowledged)
            ));
        }
        *expected = Expected { acknowledged: now, in_doubt: None };
    }
    // The next write gets a revision that nobody has seen.
    let probe = Txn {
        compares: vec![Compare::Absent("/never".into())],
        ..Txn::put("/probe".into(), Value::raw("p"))
    };
    let response =
        store.txn(probe).await.map_err(|error| format!("write after the crash failed: {error}"))?;
    if response.revision <= model.revision.max(all.revision) {
        return Err(format!("revision {} was given out twice", response.revision));
    }
    model.revision = response.revision;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_power_failures() {
    let disk = Arc::new(Disk::new(false));
    let seed = std::env::var("CORACLE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let written = survive(disk.clone(), 200, seed).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    assert!(written > 2000, "only {written} writes were acknowledged");
}

/// A store's life that is always the same: opened twice, with a journal that is full, values too large for it, snapshots, compaction and
/// defragmentation. It ends where the power fails; returns whether that did not happen.
async fn live(dir: &Path, disk: &Arc<Disk>, model: &mut Model) -> bool {
    for session in 0..2 {
        let options = Options { snapshot_every: 15, threads: false, ..options(dir, disk) };
        let Ok(store) = Store::open(options).await else { return false };
        for n in 0..24 {
            let size = if n == 9 { 40_000 } else { n * 190 };
            let (key, value) = (format!("/{}", n % 7), format!("{session}.{n}:{}", "x".repeat(size)));
            let expected = model.keys.entry(key.clone()).or_default();
            let (txn, value) = match n % 5 {
                4 => (Txn { success: vec![Op::Delete { key: key.into() }], ..Txn::default() }, None),
                _ => (Txn::put(key.into(), Value::raw(value.clone())), Some(value)),
            };
            expected.in_doubt = Some(value.clone());
            let Ok(response) = store.txn(txn).await else { break };
            *expected = Expected { acknowledged: value.map(|v| (v, response.revision)), in_doubt: None };
            model.revision = response.revision;
            match n {
                11 => drop(store.compact(response.revision - 5).await),
                17 => drop(store.defragment().await),
                _ => {}
            }
        }
        let ended = timeout(store.shutdown()).await;
        if disk.is_dead() || !matches!(ended, Ok(Ok(()))) {
            return false;
        }
    }
    true
}

/// Not drawn, but each one: before the first file is made, until the store is closed for the second time.
#[tokio::test(start_paused = true)]
async fn every_point_of_a_life_at_which_the_power_may_fail() {
    for point in 0.. {
        let (disk, dir, mut model) =
            (Arc::new(Disk::new(false)), tempfile::tempdir().unwrap(), Model::default());
        disk.fail_after(point);
        if live(dir.path(), &disk, &mut model).await {
            assert!(!disk.is_dead() && point > 300, "only {point} points");
            return;
        }
        assert!(disk.is_dead(), "point {point}: the store failed before the disk");
        disk.restart(point);
        let options = Options { threads: false, ..options(dir.path(), &disk) };
        let store = Store::open(options).await.unwrap_or_else(|error| panic!("point {point}: {error}"));
        verify(&store, &mut model).await.unwrap_or_else(|what| panic!("point {point}: {what}"));
        store.shutdown().await.unwrap();
    }
}

/// The harness notices when syncing is stubbed out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_is_found_out() {
    for seed in 1..=3 {
        let found = survive(Arc::new(Disk::new(true)), 50, seed).await;
        assert!(found.is_err(), "seed {seed}: fifty power failures without syncs went unnoticed");
    }
}

/// One client: one sync a write. Many: they share.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_share_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::new(false));
    let store = Store::open(Options { files: Some(disk.clone()), ..Options::new(dir.path()) }).await.unwrap();
    let before = disk.syncs();
    for n in 0..50 {
        store.txn(Txn::put(format!("/{n}").into(), Value::raw("v"))).await.unwrap();
    }
    let alone = disk.syncs() - before;
    assert!((50..=52).contains(&alone), "{alone} syncs for 50 writes in turn");
    let before = disk.syncs();
    let writes = (0..500).map(|n| store.txn(Txn::put(format!("/{n}").into(), Value::raw("v"))));
    futures::future::try_join_all(writes).await.unwrap();
    let together = disk.syncs() - before;
    assert!(together < 100, "{together} syncs for 500 writes at once");
    store.shutdown().await.unwrap();
}
