use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::{Error, Event, EventKind, Watch};

fn watch(store: &Store, prefix: &str, after: u64) -> Watch {
    store.watch(key(prefix), after).unwrap_or_else(|error| panic!("watch failed: {error}"))
}

async fn next(watch: &mut Watch) -> Arc<Event> {
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await;
    event.unwrap_or_else(|_| panic!("no event came")).unwrap_or_else(|error| panic!("{error}"))
}

/// Events come in order from any revision on, past ones and new ones, with the value before.
pub async fn watch_from_a_revision(store: Store) {
    let start = store.revision();
    let mut live = watch(&store, "/a/", start);
    assert!(live.try_next().is_ok_and(|event| event.is_none()));
    let first = put(&store, "/a/x", "1").await;
    put(&store, "/b/x", "other").await;
    let second = put(&store, "/a/x", "2").await;
    let third = delete(&store, "/a/x").await.revision;
    let mut late = watch(&store, "/a/", start);
    for watch in [&mut live, &mut late] {
        let event = next(watch).await;
        assert_eq!((event.kind, event.revision, event.kv.version), (EventKind::Put, first, 1));
        assert!(event.prev.is_none());
        let event = next(watch).await;
        assert_eq!((event.kind, event.revision, event.kv.version), (EventKind::Put, second, 2));
        assert_eq!(event.prev.as_ref().map(|kv| text(kv)), Some("1".into()));
        let event = next(watch).await;
        assert_eq!((event.kind, event.revision, event.kv.mod_revision), (EventKind::Delete, third, third));
        assert_eq!(text(&event.kv), "2", "a deletion carries the last value");
        assert!(watch.try_next().is_ok_and(|event| event.is_none()));
    }
    let mut middle = watch(&store, "/a/", second);
    assert_eq!(next(&mut middle).await.revision, third);
    let last = put(&store, "/c", "1").await;
    assert_eq!(middle.progress_revision(), last, "a watcher without events makes progress");
    let mut future = watch(&store, "/a/", last + 1);
    put(&store, "/a/x", "not this one").await;
    let wanted = put(&store, "/a/x", "this one").await;
    assert_eq!(next(&mut future).await.revision, wanted);
}

/// A watch from before the window is refused, and one that falls behind it ends; both say so.
pub async fn watch_window(store: Store) {
    let start = store.revision();
    let mut slow = watch(&store, "a", start);
    let mut quiet = watch(&store, "b", start);
    for n in 0..1500 {
        put(&store, "a", &n.to_string()).await;
    }
    let oldest = store.compacted_revision();
    let refused = store.watch(key("a"), oldest - 1);
    assert!(matches!(refused, Err(Error::Compacted { compact_revision }) if compact_revision == oldest));
    assert!(
        matches!(slow.next().await, Err(Error::Compacted { .. })),
        "a slow watcher is told, not served a gap"
    );
    assert!(quiet.try_next().is_ok_and(|event| event.is_none()), "nothing happened under this prefix");
    let seen = put(&store, "b", "1").await;
    assert_eq!(next(&mut quiet).await.revision, seen, "so it goes on");
    let mut edge = watch(&store, "a", store.compacted_revision());
    assert_eq!(next(&mut edge).await.revision, store.compacted_revision() + 1);
}

/// Many writers, many watchers that start at any time: each sees every event once and in order.
pub async fn watch_under_concurrent_writers(store: Store) {
    const WRITERS: usize = 8;
    const WRITES: usize = 150;
    let start = store.revision();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut written = Vec::new();
            for n in 0..WRITES {
                let at = format!("/w{}/{}", writer % 4, n % 7);
                let revision = match n % 5 {
                    4 => delete(&store, &at).await.revision,
                    _ => put(&store, &at, &format!("{writer}.{n}")).await,
                };
                written.push((revision, at));
            }
            written
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut watchers = Vec::new();
    for n in 0..24 {
        let prefix = ["/", "/w1", "/w2/", "/w3/3"][n % 4];
        let after = if n % 2 == 0 { start } else { store.revision() };
        let watch = watch(&store, prefix, after);
        watchers.push(tokio::spawn(follow(store.clone(), watch, prefix, after)));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for writer in writers {
        writer.await.unwrap_or_else(|error| panic!("{error}"));
    }
    let end = put(&store, "/end", "").await;
    // The truth: the window, read by a watcher that starts when everything is over.
    let mut all = watch(&store, "/", start);
    let mut truth = Vec::new();
    loop {
        let event = next(&mut all).await;
        truth.push((event.revision, event.kv.key.clone()));
        if event.revision == end {
            break;
        }
    }
    assert!(
        truth.iter().zip(start + 1..).all(|((revision, _), expected)| *revision == expected),
        "no revision is missing"
    );
    for watcher in watchers {
        let (prefix, after, seen) = watcher.await.unwrap_or_else(|error| panic!("{error}"));
        let wanted = truth.iter().filter(|(r, at)| *r > after && at.starts_with(prefix.as_bytes()));
        assert_eq!(seen, wanted.cloned().collect::<Vec<_>>(), "watcher of {prefix} after {after}");
    }
}

type Seen = Vec<(u64, Bytes)>;

/// Reads a watch until the end mark is passed; checks that `prev` is what was seen before.
async fn follow(
    store: Store,
    mut watch: Watch,
    prefix: &'static str,
    after: u64,
) -> (&'static str, u64, Seen) {
    let mut seen = Vec::new();
    let mut current: HashMap<Bytes, Arc<KeyValue>> = HashMap::new();
    loop {
        let event = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
        let Ok(event) = event else {
            if let Some(end) = store.get(b"/end")
                && watch.progress_revision() >= end.mod_revision
            {
                return (prefix, after, seen);
            }
            continue;
        };
        let event = event.unwrap_or_else(|error| panic!("{error}"));
        if let Some(before) = current.get(&event.kv.key) {
            assert_eq!(event.prev.as_ref(), Some(before), "the value before is the one of the event before");
        }
        match event.kind {
            EventKind::Put => current.insert(event.kv.key.clone(), event.kv.clone()),
            EventKind::Delete => current.remove(&event.kv.key),
        };
        seen.push((event.revision, event.kv.key.clone()));
        if event.kv.key == "/end" {
            return (prefix, after, seen);
        }
    }
}
