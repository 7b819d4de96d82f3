//! Leases across restarts, leaders and snapshots. What they do on one member is in the conformance suite.

use std::time::{Duration, Instant};

use coracle_store::{Error, Op, Options, Store, Txn, Value};

use super::members::{Members, until, until_asked};

const TTL: Duration = Duration::from_secs(3);

async fn put(store: &Store, key: &str, lease: u64) -> Result<u64, Error> {
    let op = Op::PutLeased { key: key.to_owned().into(), value: Value::raw("1"), lease };
    store.txn(Txn { success: vec![op], ..Txn::default() }).await.map(|response| response.revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_survive_a_restart_and_a_snapshot_with_their_whole_time() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { snapshot_every: 10, ..Options::new(dir.path().join("data")) };
    let store = Store::open(options()).await.unwrap();
    let lease = store.grant_lease(Some(7), TTL).await.unwrap();
    let long = store.grant_lease(None, Duration::from_secs(3600)).await.unwrap();
    for n in 0..30 {
        put(&store, &format!("/l/{}", n % 3), lease).await.unwrap();
        put(&store, "/long", long).await.unwrap();
    }
    assert_eq!(store.status().format, 2);
    // Part of its time passes before the restart.
    until("some of its time to pass", || {
        futures::executor::block_on(store.lease(lease)).unwrap().remaining.lt(&(TTL / 2)).then_some(())
    })
    .await;
    let saved = dir.path().join("saved");
    store.save_snapshot(&saved).await.unwrap();
    store.shutdown().await.unwrap();
    drop(store);

    let store = Store::open(options()).await.unwrap();
    let opened = Instant::now();
    let found = store.lease(lease).await.unwrap();
    assert_eq!((found.ttl, found.keys.len()), (TTL, 3));
    assert!(found.remaining + opened.elapsed() + Duration::from_secs(1) > TTL, "{found:?}");
    let before = store.revision();
    until("it ends", || store.get(b"/l/0").is_none().then_some(())).await;
    assert!(opened.elapsed() >= TTL - Duration::from_secs(1), "after {:?}", opened.elapsed());
    assert_eq!(store.revision(), before + 1, "all keys under one revision");
    assert!(store.get(b"/l/2").is_none() && store.get(b"/long").is_some());
    assert_eq!(store.leases(), [long]);
    store.shutdown().await.unwrap();

    // The cluster that is made of the snapshot has them as they were then.
    let inspected = Store::inspect(&saved).unwrap();
    assert_eq!(inspected.format, 2);
    let other = dir.path().join("other");
    Store::restore(&other, &saved, 1).await.unwrap();
    let store = Store::open(Options::new(&other)).await.unwrap();
    assert_eq!(store.lease(lease).await.unwrap().keys.len(), 3);
    store.revoke_lease(long).await.unwrap();
    assert!(store.get(b"/long").is_none() && store.get(b"/l/2").is_some());
    store.shutdown().await.unwrap();
}

/// A member that is behind says nothing of a lease before it knows it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_there_at_a_member_that_is_behind() {
    let mut members = Members::cluster(3).await;
    let leader = members.leader(1).await;
    let behind = leader % 3 + 1;
    let store = members.store(leader).clone();
    until_asked("members that are heard", async || store.grant_lease(Some(1), TTL).await.ok()).await;
    members.agree().await;
    // It can ask the leader, whose entries do not reach it.
    members.cut(leader, behind);
    store.grant_lease(Some(7), Duration::from_secs(3600)).await.unwrap();
    let late = members.store(behind).clone();
    let asked = tokio::spawn(async move { late.lease(7).await });
    store.lease(7).await.unwrap();
    put(&store, "/l/a", 7).await.unwrap();
    members.heal();
    let found = asked.await.unwrap().unwrap();
    assert_eq!(found.id, 7);
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_on_under_another_leader_and_end_there() {
    let mut members = Members::cluster(3).await;
    let leader = members.leader(1).await;
    let other = leader % 3 + 1;
    let third = other % 3 + 1;
    // Any member takes all of it.
    let store = members.store(other).clone();
    let lease = store.grant_lease(None, TTL).await.unwrap();
    let revision = put(&store, "/l/a", lease).await.unwrap();
    put(members.store(third), "/l/b", lease).await.unwrap();
    let mut watch = members.store(third).watch("/l/".into(), revision + 1).unwrap();
    let found = members.store(third).lease(lease).await.unwrap();
    assert!(found.keys.len() == 2 && found.remaining <= TTL, "{found:?}");
    store.keep_alive(lease).await.unwrap();
    members.isolate(leader);
    // Nobody keeps it alive any more; the next leader gives it its whole time once.
    let next = until("another leader", || store.leader().0.filter(|id| *id != leader)).await;
    let led = Instant::now();
    assert!(members.store(next).get(b"/l/a").is_some());
    let kept = loop {
        match store.keep_alive(lease).await {
            Ok(ttl) => break ttl,
            // It was on its way to the old leader.
            Err(Error::Timeout(_)) => {}
            Err(error) => panic!("{error}"),
        }
    };
    let kept_at = Instant::now();
    assert_eq!(kept, TTL);
    let mut ended = Vec::new();
    for _ in 0..2 {
        let event = tokio::time::timeout(TTL * 5, watch.next()).await.expect("it ends").unwrap();
        ended.push((event.revision, event.kv.key.clone()));
    }
    assert!(
        kept_at.elapsed() >= TTL - Duration::from_millis(50),
        "{:?} {:?}",
        kept_at.elapsed(),
        led.elapsed()
    );
    assert_eq!(ended.iter().map(|(_, key)| &key[..]).collect::<Vec<_>>(), [b"/l/a", b"/l/b"]);
    assert_eq!(ended[0].0, ended[1].0, "all keys under one revision");
    // The one that was cut off learns of it, and does not bring it back.
    members.heal();
    members.agree().await;
    assert!(members.store(leader).leases().is_empty());
    let gone = members.store(leader).keep_alive(lease).await;
    assert!(matches!(gone, Err(Error::NoLease { .. })), "{gone:?}");
    members.close_all().await;
}
