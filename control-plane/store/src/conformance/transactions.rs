use super::*;
use crate::{Compare, Error, MAX_KEY_BYTES, MAX_TXN_BYTES};

/// Each write gets the next revision; keys carry the revisions of their creation and of their last change.
pub async fn revisions(store: Store) {
    let empty = store.revision();
    let first = put(&store, "a", "1").await;
    assert!(first > 0 && first > empty, "first write has revision {first}, the store was at {empty}");
    assert_eq!(store.revision(), first, "an answered write is visible");
    let second = put(&store, "a", "2").await;
    assert_eq!(second, first + 1);
    let kv = get(&store, "a");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (first, second, 2));
    assert_eq!(text(&kv), "2");

    let OpResult::Deleted { prev: Some(prev) } = only(delete(&store, "a").await) else {
        panic!("a delete answers with what was there")
    };
    assert_eq!(prev.mod_revision, second);
    assert!(store.get(b"a").is_none());
    let nothing = delete(&store, "a").await;
    assert_eq!(
        (nothing.revision, store.revision()),
        (second + 1, second + 1),
        "deleting nothing takes no revision"
    );
    assert!(matches!(only(nothing), OpResult::Deleted { prev: None }));

    let again = put(&store, "a", "3").await;
    let kv = get(&store, "a");
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (again, again, 1), "a key begins anew");
    let read = Txn { success: vec![Op::Get { key: key("a") }], ..Txn::default() };
    assert_eq!(txn(&store, read).await.revision, again, "a read takes no revision");
    store.linearizable().await.unwrap_or_else(|error| panic!("leader check failed: {error}"));
}

/// Compare-and-set: create, update and delete with conditions.
pub async fn compares(store: Store) {
    let created = txn(&store, Txn::create(key("a"), value("1"), None)).await;
    assert!(created.succeeded);
    let taken = txn(&store, Txn::create(key("a"), value("2"), None)).await;
    assert!(!taken.succeeded);
    assert_eq!(taken.revision, created.revision, "a transaction that wrote nothing took no revision");
    assert!(matches!(only(taken), OpResult::Get(Some(kv)) if text(&kv) == "1"));

    let updated = txn(&store, Txn::update(key("a"), created.revision, value("2"), None)).await;
    assert!(updated.succeeded);
    assert!(matches!(only(updated.clone()), OpResult::Put { prev: Some(kv) } if text(&kv) == "1"));
    let stale = txn(&store, Txn::update(key("a"), created.revision, value("3"), None)).await;
    assert!(!stale.succeeded);
    assert!(matches!(only(stale), OpResult::Get(Some(kv)) if kv.mod_revision == updated.revision));
    let missing = txn(&store, Txn::update(key("b"), created.revision, value("3"), None)).await;
    assert!(!missing.succeeded && matches!(only(missing), OpResult::Get(None)));

    assert!(!txn(&store, Txn::delete(key("a"), created.revision)).await.succeeded);
    let exists = |at| Txn {
        compares: vec![Compare::Exists(key(at))],
        success: vec![Op::Delete { key: key(at) }],
        ..Txn::default()
    };
    assert!(!txn(&store, exists("b")).await.succeeded);
    assert!(txn(&store, exists("a")).await.succeeded);
    assert!(!txn(&store, Txn::delete(key("a"), updated.revision)).await.succeeded);
}

/// All writes of a transaction share a revision; operations see what those before them did.
pub async fn multi_operation_transactions(store: Store) {
    let before = put(&store, "a", "1").await;
    let many = Txn {
        compares: vec![Compare::Exists(key("a")), Compare::Absent(key("b"))],
        success: vec![
            Op::Put { key: key("b"), value: value("2"), ttl_ms: None },
            Op::Get { key: key("b") },
            Op::Delete { key: key("a") },
            Op::Get { key: key("a") },
        ],
        failure: vec![Op::Put { key: key("c"), value: value("never"), ttl_ms: None }],
    };
    let response = txn(&store, many).await;
    assert!(response.succeeded);
    assert_eq!((response.revision, store.revision()), (before + 1, before + 1));
    let [put, read, deleted, gone] = response.results.as_slice() else { panic!("four results") };
    assert!(matches!(put, OpResult::Put { prev: None }));
    assert!(matches!(read, OpResult::Get(Some(kv)) if kv.mod_revision == before + 1));
    assert!(matches!(deleted, OpResult::Deleted { prev: Some(kv) } if kv.mod_revision == before));
    assert!(matches!(gone, OpResult::Get(None)));
    assert!(store.get(b"c").is_none());
    let mut watch = store.watch(Bytes::new(), before).unwrap_or_else(|error| panic!("{error}"));
    for kind in [crate::EventKind::Put, crate::EventKind::Delete] {
        let event = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((event.kind, event.revision), (kind, before + 1));
    }
}

/// What is too large or makes no sense is refused before it reaches the log.
pub async fn refuses_bad_requests(store: Store) {
    let before = store.revision();
    let twice = Op::Put { key: key("a"), value: value("1"), ttl_ms: None };
    let bad = [
        Txn { success: vec![twice.clone(), twice], ..Txn::default() },
        Txn::put(Bytes::new(), value("1")),
        Txn::put(vec![b'k'; MAX_KEY_BYTES + 1].into(), value("1")),
        Txn::put(key("a"), Value::raw(vec![b'v'; MAX_TXN_BYTES + 1])),
        Txn { compares: vec![Compare::Absent(key("a")); 2000], ..Txn::default() },
    ];
    for txn in bad {
        assert!(matches!(store.txn(txn).await, Err(Error::Invalid(_))));
    }
    assert!(matches!(store.compact(before + 10).await, Err(Error::FutureRevision { .. })));
    assert_eq!(store.revision(), before);
    let largest = put(&store, "a", &"v".repeat(MAX_TXN_BYTES - 1)).await;
    assert_eq!(get(&store, "a").mod_revision, largest, "the largest value allowed is stored");
}
