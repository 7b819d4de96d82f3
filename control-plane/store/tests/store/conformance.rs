use coracle_store::{Options, Store, conformance};

use super::members::Members;

fn options(dir: &std::path::Path, history: u64) -> Options {
    Options { history, ..Options::new(dir) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_memory() {
    conformance::all(async |history| Store::in_memory(&options("unused".as_ref(), history))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let next = std::cell::Cell::new(0);
    conformance::all(async |history| {
        next.set(next.get() + 1);
        Store::open(options(&dir.path().join(next.get().to_string()), history)).await.unwrap()
    })
    .await;
}

/// A member that does not lead: what it serves reads, lists and watches from is a copy that follows the leader's log. The API
/// server of each member reads from it and keeps no other, so this is its watch cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_the_watch_cache_of_a_follower() {
    let clusters = std::cell::RefCell::new(Vec::new());
    conformance::all(async |history| {
        let mut members = Members::new();
        members.history = history;
        members.open(1).await;
        members.open(2).await;
        let follower = members.store(members.leader(1).await % 2 + 1).clone();
        assert_ne!(follower.leader().0, Some(follower.status().member));
        clusters.borrow_mut().push(members);
        follower
    })
    .await;
    for mut members in clusters.into_inner() {
        members.close_all().await;
    }
}
