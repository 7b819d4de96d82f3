use std::time::Duration;

use super::*;
use crate::EventKind;

/// Keys with a time to live go by themselves, and watchers see it; a key that was set again lives on.
pub async fn expires_keys(store: Store) {
    let start = store.revision();
    let mut watch = store.watch(key("/events/"), start).unwrap_or_else(|error| panic!("{error}"));
    txn(&store, Txn::create(key("/events/short"), value("1"), Some(1))).await;
    txn(&store, Txn::create(key("/events/long"), value("1"), Some(3_600_000))).await;
    let kept = txn(&store, Txn::create(key("/events/kept"), value("1"), Some(300))).await;
    assert!(txn(&store, Txn::update(key("/events/kept"), kept.revision, value("2"), None)).await.succeeded);
    assert!(get(&store, "/events/long").expires_at.is_some());
    assert_eq!(get(&store, "/events/kept").expires_at, None);
    let deleted = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let event = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
            if event.kind == EventKind::Delete {
                return event;
            }
        }
    });
    let event = deleted.await.unwrap_or_else(|_| panic!("the key did not expire"));
    assert_eq!(event.kv.key, "/events/short");
    assert!(store.get(b"/events/short").is_none());
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(store.get(b"/events/kept").is_some() && store.get(b"/events/long").is_some());
    // The short one may have gone before the others came.
    while let Some(event) = watch.try_next().unwrap_or_else(|error| panic!("{error}")) {
        assert_eq!(event.kind, EventKind::Put);
    }
}
