//! Restarts, damage, and data that is not ours.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use coracle_store::{Error, Op, Options, Range, Store, Txn, Value};

use coracle_simulation::disk::Disk;

use super::members::until_asked;

async fn put(store: &Store, key: &str, value: &str) -> u64 {
    let txn = Txn::put(key.to_owned().into(), Value::raw(value.to_owned()));
    store.txn(txn).await.unwrap().revision
}

fn dump(store: &Store) -> Vec<coracle_store::KeyValue> {
    store.range(&Range::prefix("")).unwrap().kvs.iter().map(|kv| (**kv).clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history: 50, snapshot_every: 30, ..Options::new(dir.path()) };
    let mut before = Vec::new();
    let mut revision = 0;
    for round in 0..4 {
        let started = std::time::Instant::now();
        let store = Store::open(options.clone()).await.unwrap();
        assert!(started.elapsed().as_millis() < 2000, "no election timeout is waited for");
        assert_eq!(dump(&store), before, "round {round}");
        assert!(store.revision() >= revision);
        for n in 0..40 {
            put(&store, &format!("/{}", n % 15), &format!("{round}.{n}")).await;
        }
        let ttl = Txn::create(format!("/ttl{round}").into(), Value::raw("t"), Some(3_600_000));
        store.txn(ttl).await.unwrap();
        let gone = Txn { success: vec![Op::Delete { key: format!("/{round}").into() }], ..Txn::default() };
        revision = store.txn(gone).await.unwrap().revision;
        before = dump(&store);
        assert_eq!(store.revision(), revision);
        store.shutdown().await.unwrap();
        assert!(matches!(store.txn(Txn::put("/x".into(), Value::raw(""))).await, Err(Error::Stopped(_))));
    }
    let store = Store::open(options).await.unwrap();
    // The window survives as well: a watcher resumes where it was.
    let from = revision - 20;
    let mut watch = store.watch("/".into(), from).unwrap();
    for expected in from + 1..=revision {
        assert_eq!(watch.next().await.unwrap().revision, expected);
    }
    assert_eq!(put(&store, "/next", "1").await, revision + 1);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_in_use_of_another_node_or_of_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Options::new(dir.path())).await.unwrap();
    let second = Store::open(Options::new(dir.path())).await;
    assert!(matches!(second, Err(Error::Locked { .. })), "{second:?}");
    put(&store, "/a", "1").await;
    store.shutdown().await.unwrap();
    let other = Store::open(Options { node_id: 2, ..Options::new(dir.path()) }).await;
    assert!(matches!(other, Err(Error::WrongNode { found: 1, expected: 2 })), "{other:?}");

    for name in ["state.redb", "log.redb"] {
        let set = |format: u64| {
            let database = redb::Database::open(dir.path().join(name)).unwrap();
            let txn = database.begin_write().unwrap();
            let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
            let bytes = postcard::to_stdvec(&format).unwrap();
            txn.open_table(meta).unwrap().insert("format", bytes.as_slice()).unwrap();
            txn.commit().unwrap();
        };
        set(3);
        let newer = Store::open(Options::new(dir.path())).await;
        assert!(matches!(newer, Err(Error::FormatTooNew { found: 3, supported: 2, .. })), "{newer:?}");
        set(1);
    }
    let store = Store::open(Options::new(dir.path())).await.unwrap();
    assert_eq!(dump(&store).len(), 1);
    store.shutdown().await.unwrap();
}

/// Any bit of either file: the store opens with all it had, or says that it is damaged, and keeps saying so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_never_served() {
    let mut found = 0;
    for case in 0..60_usize {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::new(false));
        let options = Options { files: Some(disk.clone()), ..Options::new(dir.path()) };
        let store = Store::open(options.clone()).await.unwrap();
        for n in 0..40 {
            put(&store, &format!("/{n}"), &"x".repeat(500)).await;
        }
        let before = dump(&store);
        store.shutdown().await.unwrap();
        disk.restart(0);
        let name = if case % 2 == 0 { "state.redb" } else { "log.redb" };
        disk.damage(name, case, 60);
        for _ in 0..2 {
            match Store::open(options.clone()).await {
                Ok(store) => {
                    assert_eq!(dump(&store), before, "case {case}");
                    store.shutdown().await.unwrap();
                }
                Err(Error::Corrupt { .. } | Error::Io { .. } | Error::FormatTooNew { .. }) => found += 1,
                Err(error) => panic!("case {case}: {error}"),
            }
        }
    }
    assert!(found >= 30, "damage was found {found} times");
}

/// Any bit of the journal after a power failure: all is there, it is said that it is damaged, or, where the bit is of the last
/// write of all, that one is as if its sync had never come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_the_journal_is_found() {
    let (mut found, mut last) = (0, 0);
    for case in 0..40_usize {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Disk::new(false));
        let options = Options { files: Some(disk.clone()), ..Options::new(dir.path()) };
        let store = Store::open(options.clone()).await.unwrap();
        for n in 0..20 {
            put(&store, &format!("/{n:02}"), &"x".repeat(500)).await;
        }
        let before = dump(&store);
        disk.cut();
        let _ = store.shutdown().await;
        disk.restart(0);
        disk.damage("log.wal", case, 40);
        match Store::open(options.clone()).await {
            Ok(store) => {
                let after = dump(&store);
                assert_eq!(after[..], before[..after.len()], "case {case}");
                assert!(after.len() >= before.len() - 1, "case {case}: {} are left", after.len());
                last += before.len() - after.len();
                store.shutdown().await.unwrap();
            }
            Err(Error::Corrupt { .. }) => {
                assert!(matches!(Store::open(options.clone()).await, Err(Error::Corrupt { .. })), "{case}");
                found += 1;
            }
            Err(error) => panic!("case {case}: {error}"),
        }
    }
    assert!(found >= 30 && last <= 4, "found {found} times, {last} last writes were lost");
}

/// One of the two files is gone, or comes from another time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_the_data_is_refused() {
    for name in ["log.redb", "state.redb"] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { snapshot_every: 10, ..Options::new(dir.path()) };
        let store = Store::open(options.clone()).await.unwrap();
        for n in 0..100 {
            put(&store, "/a", &n.to_string()).await;
        }
        store.shutdown().await.unwrap();
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let half = Store::open(options).await;
        assert!(matches!(half, Err(Error::Corrupt { .. })), "{name}: {half:?}");
    }
}

/// A full disk: the write is refused, everything after it too, and a restart has all that was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_write_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Disk::new(false));
    let options = Options { files: Some(disk.clone()), ..Options::new(dir.path()) };
    let store = Store::open(options.clone()).await.unwrap();
    put(&store, "/a", "1").await;
    let mut watch = store.watch("/".into(), store.revision()).unwrap();
    disk.cut();
    for _ in 0..3 {
        let refused = store.txn(Txn::put("/a".into(), Value::raw("2"))).await;
        assert!(matches!(refused, Err(Error::Stopped(_))), "{refused:?}");
    }
    assert!(matches!(watch.next().await, Err(Error::Stopped(_))), "watchers learn of it");
    let _ = store.shutdown().await;
    disk.restart(3);
    let store = Store::open(options).await.unwrap();
    assert_eq!(dump(&store).len(), 1);
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_is_written_while_writes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Options::new(dir.path().join("data"))).await.unwrap();
    put(&store, "/a", "1").await;
    let file = dir.path().join("backup.snapshot");
    // Left over from a time when others could read it.
    std::fs::write(file.with_extension("part"), "").unwrap();
    std::fs::set_permissions(file.with_extension("part"), PermissionsExt::from_mode(0o644)).unwrap();
    let (saved, _) = tokio::join!(store.save_snapshot(&file), put(&store, "/b", "2"));
    saved.unwrap();
    assert!(std::fs::read(&file).unwrap().starts_with(b"CORACLE\0"));
    assert!(!file.with_extension("part").exists());
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    store.shutdown().await.unwrap();
}

/// The process was killed while another member sent a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_did_not_arrive_goes_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let left = dir.path().join("incoming.snapshot");
    std::fs::write(&left, "CORACLE").unwrap();
    let store = Store::open(Options::new(dir.path())).await.unwrap();
    assert!(!left.exists());
    store.shutdown().await.unwrap();
}

/// A store that is let go of without a shutdown frees its directory and its threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_store_can_be_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let store = until_asked("a directory that is free", async || {
            match Store::open(Options::new(dir.path())).await {
                Err(Error::Locked { .. }) => None,
                opened => Some(opened.unwrap()),
            }
        });
        let store = store.await;
        assert_eq!(dump(&store).len(), round);
        put(&store, &format!("/{round}"), "1").await;
    }
}

/// Callers that go away while their write is under way harm nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_writes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Options::new(dir.path())).await.unwrap();
    for n in 0..200 {
        let write = store.txn(Txn::put("/a".into(), Value::raw(n.to_string())));
        let _ = tokio::time::timeout(std::time::Duration::from_micros(n * 5), write).await;
    }
    let last = put(&store, "/a", "last").await;
    assert_eq!(store.get(b"/a").unwrap().mod_revision, last);
    store.shutdown().await.unwrap();
}

/// Large values do not make a large log: a restart finds it short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_do_not_pile_up_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { log_bytes: 1 << 20, history_bytes: 1 << 20, ..Options::new(dir.path()) };
    let store = Store::open(options.clone()).await.unwrap();
    let big = "x".repeat(200_000);
    let started = std::time::Instant::now();
    while started.elapsed().as_millis() < 2500 {
        put(&store, "/big", &big).await;
    }
    let last = store.get(b"/big").unwrap();
    store.shutdown().await.unwrap();
    let entries = {
        let database = redb::Database::open(dir.path().join("log.redb")).unwrap();
        let txn = redb::ReadableDatabase::begin_read(&database).unwrap();
        let table = txn.open_table(redb::TableDefinition::<u64, &[u8]>::new("entries")).unwrap();
        redb::ReadableTableMetadata::len(&table).unwrap()
    };
    assert!(entries < last.version, "{entries} of {} entries are left", last.version);
    let store = Store::open(options).await.unwrap();
    assert_eq!(store.get(b"/big"), Some(last));
    store.shutdown().await.unwrap();
}
