use std::time::{Duration, Instant};

use super::*;
use crate::{Error, EventKind};

fn leased(at: &str, text: &str, lease: u64) -> Txn {
    let op = Op::PutLeased { key: key(at), value: value(text), lease };
    Txn { success: vec![op], ..Txn::default() }
}

async fn grant(store: &Store, seconds: u64) -> u64 {
    let granted = store.grant_lease(None, Duration::from_secs(seconds)).await;
    granted.unwrap_or_else(|error| panic!("no lease: {error}"))
}

async fn keys(store: &Store, lease: u64) -> Vec<Bytes> {
    store.lease(lease).await.unwrap_or_else(|error| panic!("{error}")).keys
}

/// A lease has any number of keys; all go under one revision when it is revoked or its time has come, not before.
pub async fn leases(store: Store) {
    let before = store.revision();
    let lease = grant(&store, 3600).await;
    assert_eq!(store.revision(), before, "a lease takes no revision");
    let taken = store.grant_lease(Some(lease), Duration::from_secs(60)).await;
    assert!(matches!(taken, Err(Error::Invalid(_))), "{taken:?}");
    for bad in [Duration::ZERO, Duration::from_millis(999), Duration::MAX] {
        assert!(matches!(store.grant_lease(None, bad).await, Err(Error::Invalid(_))));
    }
    for at in ["/l/a", "/l/b", "/l/c", "/l/d"] {
        txn(&store, leased(at, "1", lease)).await;
    }
    assert_eq!(get(&store, "/l/a").lease, Some(lease));
    let other = grant(&store, 3600).await;
    // A key has the lease of its last put.
    txn(&store, leased("/l/c", "2", other)).await;
    put(&store, "/l/d", "2").await;
    assert_eq!(keys(&store, lease).await, ["/l/a", "/l/b"]);
    assert_eq!(keys(&store, other).await, ["/l/c"]);
    let mut listed = [lease, other];
    listed.sort_unstable();
    assert_eq!(store.leases(), listed);

    let end = store.revision();
    let nobody = store
        .txn(Txn {
            success: vec![Op::Delete { key: key("/l/d") }, leased("/l/e", "1", 77).success.remove(0)],
            ..Txn::default()
        })
        .await;
    assert!(matches!(nobody, Err(Error::NoLease { lease: 77 })), "{nobody:?}");
    assert!(store.get(b"/l/d").is_some() && store.revision() == end, "nothing of it was done");

    let mut watch = store.watch(key("/l/"), end).unwrap_or_else(|error| panic!("{error}"));
    let revoked = store.revoke_lease(lease).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((revoked, store.revision()), (end + 1, end + 1));
    for at in ["/l/a", "/l/b"] {
        let event = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(
            (event.kind, event.revision, &event.kv.key[..]),
            (EventKind::Delete, end + 1, at.as_bytes())
        );
    }
    assert!(store.get(b"/l/c").is_some() && store.get(b"/l/d").is_some());
    for gone in [
        store.revoke_lease(lease).await.err(),
        store.keep_alive(lease).await.err(),
        store.lease(lease).await.err(),
    ] {
        assert!(matches!(gone, Some(Error::NoLease { .. })), "{gone:?}");
    }
}

/// A lease lives for as long as it is kept alive.
pub async fn lease_time(store: Store) {
    let lease = grant(&store, 2).await;
    let start = store.revision();
    let mut watch = store.watch(key("/l/"), start).unwrap_or_else(|error| panic!("{error}"));
    for at in ["/l/a", "/l/b"] {
        txn(&store, leased(at, "1", lease)).await;
    }
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let ttl = store.keep_alive(lease).await.unwrap_or_else(|error| panic!("it was kept alive: {error}"));
        assert_eq!(ttl, Duration::from_secs(2));
    }
    let found = store.lease(lease).await.unwrap_or_else(|error| panic!("{error}"));
    assert!(found.remaining <= found.ttl && !found.remaining.is_zero(), "{found:?}");
    assert!(store.get(b"/l/a").is_some() && store.get(b"/l/b").is_some());
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
        let event =
            event.unwrap_or_else(|_| panic!("it did not end")).unwrap_or_else(|error| panic!("{error}"));
        if event.kind == EventKind::Delete {
            ended.push((event.revision, event.kv.key.clone()));
        }
    }
    assert_eq!(ended, [(start + 3, key("/l/a")), (start + 3, key("/l/b"))], "all at once");
    assert!(matches!(store.keep_alive(lease).await, Err(Error::NoLease { .. })));
    assert!(store.leases().is_empty());
}

/// An id that is granted again is another lease: it has its own time, whatever became of the one before.
pub async fn leases_granted_again(store: Store) {
    const ID: u64 = 7;
    let short = Duration::from_secs(1);
    for revoked in [true, false] {
        grant_as(&store, ID, short).await;
        let watched = store.revision();
        txn(&store, leased("/l/a", "1", ID)).await;
        let found = store.keep_alive(ID).await;
        assert!(found.is_ok_and(|ttl| ttl == short));
        let ends = Instant::now() + short;
        if revoked {
            store.revoke_lease(ID).await.unwrap_or_else(|error| panic!("{error}"));
        } else {
            let mut watch = store.watch(key("/l/"), watched + 1).unwrap_or_else(|error| panic!("{error}"));
            let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
            assert!(event.is_ok_and(|event| event.is_ok()), "it ends");
        }
        grant_as(&store, ID, Duration::from_secs(3600)).await;
        txn(&store, leased("/l/a", "2", ID)).await;
        if !revoked {
            let kept = store.keep_alive(ID).await;
            assert!(kept.is_ok(), "{kept:?}");
        }
        // The end of the one before passes, and is looked for twice.
        while Instant::now() < ends + Duration::from_millis(1200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let found = store.lease(ID).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((found.ttl, found.keys), (Duration::from_secs(3600), vec![key("/l/a")]));
        store.revoke_lease(ID).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

async fn grant_as(store: &Store, id: u64, ttl: Duration) {
    let granted = store.grant_lease(Some(id), ttl).await;
    assert!(matches!(granted, Ok(granted) if granted == id), "{granted:?}");
}
