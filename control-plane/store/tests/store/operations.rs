//! What operators see and ask: alarms, metrics, room on the disk, less history.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use coracle_simulation::disk::Disk;
use coracle_store::{Error, Op, Options, Store, Txn};

use super::members::{metric, put, until};

fn alarm(store: &Store, name: &str) -> bool {
    store.status().alarms.iter().any(|alarm| alarm.name == name && alarm.on)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_sync_is_counted_and_told() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(Disk::new(false)));
    let store = Store::open(Options { files: Some(disk.clone()), ..Options::new(dir.path()) }).await.unwrap();
    put(&store, "/a", "1").await.unwrap();
    assert!(!alarm(&store, "SlowDisk"));
    assert_eq!(metric(&store, "coracle_store_slow_syncs_total"), 0);
    disk.slow_syncs(Duration::from_millis(1100));
    put(&store, "/a", "2").await.unwrap();
    disk.slow_syncs(Duration::ZERO);
    assert!(alarm(&store, "SlowDisk"), "{:?}", store.status());
    assert!(metric(&store, "coracle_store_slow_syncs_total") >= 1);
    assert!(metric(&store, "coracle_store_log_sync_duration_seconds_count") >= 2);
    assert!(metric(&store, "coracle_store_alarm{type=\"SlowDisk\"}") == 1);
    store.shutdown().await.unwrap();
}

/// Full or read-only: the write is refused, nothing of it is served, and all that was acknowledged is there afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_takes_no_writes_ends_the_store() {
    for kind in [ErrorKind::StorageFull, ErrorKind::ReadOnlyFilesystem] {
        let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(Disk::new(false)));
        let options = Options { files: Some(disk.clone()), ..Options::new(dir.path()) };
        let store = Store::open(options.clone()).await.unwrap();
        let kept = put(&store, "/a", "1").await.unwrap();
        disk.refuse(Some(kind));
        let refused = put(&store, "/a", "2").await;
        assert!(matches!(&refused, Err(Error::Stopped(_))), "{refused:?}");
        assert_eq!(store.get(b"/a").unwrap().mod_revision, kept, "what is not on disk is not served");
        let reason = tokio::time::timeout(Duration::from_secs(5), store.ended()).await.unwrap();
        let words = std::io::Error::from(kind).to_string();
        assert!(reason.contains(&words), "{reason:?} does not say {words:?}");
        let _ = store.shutdown().await;
        // It does not open on such a disk, says why, and does once there is room.
        if let Err(error) = Store::open(options.clone()).await {
            assert!(matches!(error, Error::Io { .. } | Error::Stopped(_)), "{error:?}");
        }
        disk.refuse(None);
        let store = Store::open(options).await.unwrap();
        assert_eq!(store.get(b"/a").unwrap().mod_revision, kept);
        put(&store, "/a", "3").await.unwrap();
        store.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn defragmentation_gives_room_back_while_the_store_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { snapshot_every: 100, ..Options::new(dir.path()) };
    let store = Store::open(options.clone()).await.unwrap();
    let value = format!("\"{}\"", "v".repeat(30_000));
    for n in 0..300 {
        put(&store, &format!("/{n}"), &value).await.unwrap();
    }
    for n in 0..300 {
        let op = Op::Delete { key: format!("/{n}").into() };
        store.txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    }
    let kept = put(&store, "/kept", "1").await.unwrap();
    store.compact(store.revision()).await.unwrap();
    store.save_snapshot(&dir.path().join("s")).await.unwrap();
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 0..50 {
                put(&store, "/meanwhile", &n.to_string()).await.unwrap();
            }
        })
    };
    let (before, after) = store.defragment().await.unwrap();
    assert!(after * 2 < before, "{before} bytes became {after}");
    assert!(metric(&store, "coracle_store_state_bytes") + metric(&store, "coracle_store_log_bytes") < before);
    writer.await.unwrap();
    store.shutdown().await.unwrap();
    let store = Store::open(options).await.unwrap();
    assert_eq!(store.get(b"/kept").unwrap().mod_revision, kept);
    assert_eq!(&store.get(b"/meanwhile").unwrap().value.json[..], b"49");
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_forgotten_by_its_age() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history_age: Some(Duration::from_secs(1)), ..Options::new(dir.path()) };
    let store = Store::open(options).await.unwrap();
    let first = put(&store, "/a", "1").await.unwrap();
    let second = put(&store, "/a", "2").await.unwrap();
    assert!(store.watch("/".into(), first).is_ok());
    until("the first revision is forgotten", || (store.compacted_revision() >= second).then_some(())).await;
    assert!(matches!(store.watch("/".into(), first), Err(Error::Compacted { .. })));
    assert_eq!(store.get(b"/a").unwrap().mod_revision, second, "what is current stays");
    assert!(store.watch("/".into(), second).is_ok());
    store.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slowest_watcher_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(Options::new(dir.path())).await.unwrap();
    let mut slow = store.watch("/a".into(), store.revision()).unwrap();
    let _idle = store.watch("/never".into(), store.revision()).unwrap();
    for n in 0..10 {
        put(&store, "/a", &n.to_string()).await.unwrap();
    }
    assert_eq!(metric(&store, "coracle_store_watchers"), 2);
    assert_eq!(metric(&store, "coracle_store_watch_lag_revisions"), 10);
    while slow.try_next().unwrap().is_some() {}
    assert_eq!(metric(&store, "coracle_store_watch_lag_revisions"), 0);
    store.shutdown().await.unwrap();
}
