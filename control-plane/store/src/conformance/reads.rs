use super::*;
use crate::{Error, Range, RangeResponse};

fn read(store: &Store, range: Range) -> RangeResponse {
    store.range(&range).unwrap_or_else(|error| panic!("range failed: {error}"))
}

fn keys(response: &RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect()
}

/// Ranges by prefix, in order, in pages, with a count.
pub async fn ranges(store: Store) {
    for at in ["/a/2", "/a/1", "/b/1", "/a/3", "/a", "/aa"] {
        put(&store, at, at).await;
    }
    let all = read(&store, Range::prefix("/a/"));
    assert_eq!(keys(&all), ["/a/1", "/a/2", "/a/3"]);
    assert_eq!((all.more, all.count, all.revision), (false, 3, store.revision()));
    assert_eq!(read(&store, Range::prefix("")).count, 6);
    assert_eq!(read(&store, Range::prefix("/c")).count, 0);
    let backwards = Range { start: key("/b"), end: Some(key("/a")), ..Range::default() };
    assert_eq!(read(&store, backwards).count, 0);

    let first = read(&store, Range::prefix("/a/").limit(2));
    assert_eq!(keys(&first), ["/a/1", "/a/2"]);
    assert_eq!((first.more, first.count), (true, 3));
    put(&store, "/a/0", "later").await;
    put(&store, "/a/4", "later").await;
    let rest = read(&store, Range::prefix("/a/").after(b"/a/2").limit(2).at(first.revision));
    assert_eq!(keys(&rest), ["/a/3"], "a page shows the state of the first page");
    assert_eq!((rest.more, rest.count, rest.revision), (false, 1, first.revision));
}

/// The past can be read inside the window, and only there.
pub async fn reads_at_a_revision(store: Store) {
    let first = put(&store, "a", "1").await;
    let second = put(&store, "a", "2").await;
    let gone = delete(&store, "a").await.revision;
    let at = |revision| read(&store, Range::prefix("a").at(revision)).kvs.first().map(|kv| text(kv));
    assert_eq!([at(first), at(second), at(gone)], [Some("1".into()), Some("2".into()), None]);
    let future = store.range(&Range::prefix("a").at(gone + 1));
    assert!(
        matches!(future, Err(Error::FutureRevision { requested, current }) if requested == gone + 1 && current == gone)
    );
    for n in 0..5 {
        put(&store, "b", &n.to_string()).await;
    }
    let oldest = store.compacted_revision();
    assert_eq!(oldest, gone, "five revisions are kept after the oldest that can be read");
    assert_eq!(at(oldest), None);
    let past = store.range(&Range::prefix("a").at(oldest - 1));
    assert!(matches!(past, Err(Error::Compacted { compact_revision }) if compact_revision == oldest));

    let now = store.revision();
    store.compact(now).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(store.compacted_revision(), now);
    assert!(store.range(&Range::prefix("b").at(now - 1)).is_err());
    assert_eq!(read(&store, Range::prefix("b").at(now)).count, 1);
    assert_eq!(store.revision(), now, "compaction takes no revision");
}
