//! Members of different versions: upgraded one after the other, taken back, refused.
//!
//! There is one build. A member of an older version is this build told to speak that version alone: it writes that version's
//! files, says nothing of versions, and refuses what is newer.

use std::sync::Arc;
use std::time::Duration;

use coracle_simulation::disk::Disk;
use coracle_store::{Error, Op, Options, Store, Txn, Value, Versions};

use super::members::{Members, put, until, until_asked};

const ONE: Versions = Versions { oldest: 1, newest: 1 };
const TWO: Versions = Versions { oldest: 1, newest: 2 };
const THREE: Versions = Versions { oldest: 3, newest: 3 };
const TTL: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_upgraded_one_after_the_other_and_no_write_fails() {
    let mut members = Members::new();
    members.versions = ONE;
    for id in 1..=3 {
        members.open(id).await;
    }
    put(members.store(1), "/by-version-1", "1").await.unwrap();
    members.versions = TWO;
    for id in 1..=3 {
        // Old and new ones work together, whoever leads.
        let refused = members.store(id).grant_lease(None, TTL).await;
        assert!(
            matches!(&refused, Err(Error::Unavailable(why)) if why.contains("upgrade it")),
            "{refused:?}"
        );
        members.close(id).await;
        let other = id % 3 + 1;
        put(members.store(other), &format!("/without-{id}"), "1").await.unwrap();
        members.open(id).await;
        put(members.store(id), &format!("/with-{id}"), "1").await.unwrap();
        members.agree().await;
        assert_eq!(members.store(id).status().format, 1, "nothing says more than version 1 can");
    }
    // One is taken back, and upgraded again.
    members.close(2).await;
    members.versions = ONE;
    members.open(2).await;
    put(members.store(2), "/back", "1").await.unwrap();
    members.close(2).await;
    members.versions = TWO;
    members.open(2).await;
    // Now that all of them know leases there may be some.
    let lease = until_asked("a lease", async || {
        match members.store(2).grant_lease(None, TTL).await {
            // The leader has not heard all of them yet.
            Err(Error::Unavailable(_)) => None,
            granted => Some(granted.unwrap()),
        }
    });
    let lease = lease.await;
    let op = Op::PutLeased { key: "/leased".into(), value: Value::raw("1"), lease };
    members.store(3).txn(Txn { success: vec![op], ..Txn::default() }).await.unwrap();
    members.agree().await;
    for id in 1..=3 {
        assert_eq!(members.store(id).status().format, 2);
        assert!(members.store(id).get(b"/by-version-1").is_some());
    }
    // From here there is no way back: the files say so, and so do the members to one that comes anew.
    members.close(3).await;
    members.versions = ONE;
    let refused = members.try_open(3).await;
    assert!(matches!(refused, Err(Error::FormatTooNew { found: 2, supported: 1, .. })), "{refused:?}");
    let refused = members.try_open(4).await;
    assert!(
        matches!(&refused, Err(Error::Invalid(why)) if why.contains("this cluster uses version 2")),
        "{refused:?}"
    );
    assert_eq!(members.store(1).members().len(), 3);
    members.versions = TWO;
    members.open(3).await;
    put(members.store(3), "/after", "1").await.unwrap();
    members.agree().await;
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_too_far_apart_refuse_each_other() {
    let mut members = Members::cluster(2).await;
    put(members.store(1), "/a", "1").await.unwrap();
    // One that only speaks what is not known here is not let in, and changes nothing.
    members.versions = THREE;
    let refused = members.try_open(3).await;
    assert!(
        matches!(&refused, Err(Error::Invalid(why)) if why.contains("upgrade one version at a time")),
        "{refused:?}"
    );
    assert_eq!(members.store(1).members().len(), 2);
    // Nor is one that has been a member.
    members.close(2).await;
    members.try_open(2).await.unwrap();
    let refused = put(members.store(2), "/b", "1").await;
    assert!(matches!(refused, Err(Error::Unavailable(_) | Error::Timeout(_))), "{refused:?}");
    members.close(2).await;
    members.versions = TWO;
    members.open(2).await;
    put(members.store(2), "/b", "1").await.unwrap();
    members.agree().await;
    assert!(members.store(1).get(b"/b").is_some());
    until("both know the leader", || members.store(1).leader().0).await;
    members.close_all().await;
}

/// A member that is away may come back with another version: what it said before does not count.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_lease_needs_every_member() {
    let mut members = Members::cluster(3).await;
    let leader = members.leader(1).await;
    let away = leader % 3 + 1;
    put(members.store(away), "/a", "1").await.unwrap();
    members.isolate(away);
    until("it knows that it is cut off", || members.store(away).adrift().borrow().then_some(())).await;
    let refused = members.store(leader).grant_lease(None, TTL).await;
    assert!(
        matches!(&refused, Err(Error::Unavailable(why)) if why.contains("has not said what it speaks")),
        "{refused:?}"
    );
    assert_eq!(members.store(leader).status().format, 1);
    members.heal();
    let store = members.store(leader);
    until_asked("a lease", async || store.grant_lease(None, TTL).await.ok()).await;
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_upgraded_when_something_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = async |versions| Store::open(Options { versions, ..Options::new(dir.path()) }).await;
    let old = open(ONE).await.unwrap();
    put(&old, "/a", "1").await.unwrap();
    let refused = old.grant_lease(None, TTL).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    old.shutdown().await.unwrap();
    let new = open(TWO).await.unwrap();
    put(&new, "/b", "1").await.unwrap();
    new.shutdown().await.unwrap();
    let old = open(ONE).await.unwrap();
    assert!(old.get(b"/b").is_some());
    old.shutdown().await.unwrap();
    let new = open(TWO).await.unwrap();
    new.grant_lease(None, TTL).await.unwrap();
    new.shutdown().await.unwrap();
    let refused = open(ONE).await;
    assert!(matches!(refused, Err(Error::FormatTooNew { found: 2, supported: 1, .. })), "{refused:?}");
    assert_eq!(open(TWO).await.unwrap().leases().len(), 1);
}

/// What waits in the log's journal is nothing to a member of version 1: it opens the files only after an orderly end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_counts_on_its_journal_is_not_opened_by_an_older_member() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), Arc::new(Disk::new(false)));
    let open = async |versions| {
        Store::open(Options { versions, files: Some(disk.clone()), ..Options::new(dir.path()) }).await
    };
    for round in 0..3 {
        let store = open(TWO).await.unwrap();
        put(&store, "/a", &format!("{round}")).await.unwrap();
        disk.cut();
        let _ = store.shutdown().await;
        disk.restart(round);
        let refused = open(ONE).await;
        assert!(matches!(refused, Err(Error::FormatTooNew { found: 2, supported: 1, .. })), "{refused:?}");
        let store = open(TWO).await.unwrap();
        assert_eq!(&store.get(b"/a").unwrap().value.json[..], format!("{round}").as_bytes());
        store.shutdown().await.unwrap();
        let store = open(ONE).await.unwrap();
        put(&store, "/b", &format!("{round}")).await.unwrap();
        store.shutdown().await.unwrap();
    }
    let store = open(TWO).await.unwrap();
    assert_eq!(&store.get(b"/b").unwrap().value.json[..], b"2");
    store.shutdown().await.unwrap();
}
