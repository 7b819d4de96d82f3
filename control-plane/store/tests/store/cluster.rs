//! Clusters of several members: joining, forwarded writes, partitions, snapshots, removal, strangers.

use std::time::{Duration, Instant};

use coracle_store::{Error, Options, PeerTls, Peering, Store, Txn, Value, Way};
use tokio::net::TcpListener;

use super::members::{Authority, Members, dump, metric, put, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_member_takes_writes_and_all_see_them_once() {
    let mut members = Members::cluster(3).await;
    assert_eq!(members.store(1).members().iter().filter(|member| member.voter).count(), 3);
    let from = members.store(1).revision();
    members.agree().await;
    let mut watches: Vec<_> = (1..=3).map(|id| members.store(id).watch("/".into(), from).unwrap()).collect();
    let mut revisions = Vec::new();
    for n in 0..30 {
        let store = members.store(n % 3 + 1);
        let key = format!("/k{}", n % 7);
        let revision = put(store, &key, &n.to_string()).await.unwrap();
        // Whoever wrote reads it at once, from memory.
        let read = store.get(key.as_bytes()).unwrap();
        assert_eq!((read.mod_revision, &read.value.json[..]), (revision, n.to_string().as_bytes()));
        revisions.push(revision);
    }
    for watch in &mut watches {
        for revision in &revisions {
            assert_eq!(watch.next().await.unwrap().revision, *revision);
        }
    }
    // A comparison is decided by the leader's state, wherever it is asked.
    for id in 1..=3 {
        let txn = Txn::create("/once".into(), Value::raw(id.to_string()), None);
        assert_eq!(members.store(id).txn(txn).await.unwrap().succeeded, id == 1);
    }
    members.agree().await;
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_loses_nothing_that_was_acknowledged() {
    let mut members = Members::cluster(3).await;
    put(members.store(1), "/before", "1").await.unwrap();
    let leader = members.leader(1).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    members.agree().await;
    let mut watch = members.store(others[0]).watch("/".into(), members.store(leader).revision()).unwrap();
    members.isolate(leader);
    let started = Instant::now();
    let alone = members.store(leader).clone();
    let lost = tokio::spawn(async move { put(&alone, "/lost", "x").await });
    // The others elect a new one and go on.
    let mut acknowledged = put(members.store(others[1]), "/after", "1").await;
    while let Err(Error::Timeout(_)) = acknowledged {
        // It was on its way to the old leader.
        acknowledged = put(members.store(others[1]), "/after", "1").await;
    }
    let acknowledged = acknowledged.unwrap();
    assert!(members.leader(others[1]).await != leader);
    // Who cannot reach a majority says so instead of hanging, and does not answer from its old state.
    let refused = lost.await.unwrap();
    assert!(matches!(refused, Err(Error::Timeout(_) | Error::Unavailable(_))), "{refused:?}");
    let read = members.store(leader).linearizable().await;
    assert!(matches!(read, Err(Error::Timeout(_) | Error::Unavailable(_))), "{read:?}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    members.heal();
    members.agree().await;
    assert!(members.store(leader).get(b"/after").is_some());
    assert!(members.store(leader).get(b"/lost").is_none());
    assert_eq!(watch.next().await.unwrap().revision, acknowledged);
    members.store(leader).linearizable().await.unwrap();
    put(members.store(leader), "/healed", "1").await.unwrap();
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_gets_a_snapshot() {
    let mut members = Members::new();
    members.snapshot_every = 20;
    for id in 1..=3 {
        members.open(id).await;
    }
    put(members.store(3), "/a", "before").await.unwrap();
    let from = members.store(3).revision();
    members.close(3).await;
    let value = "v".repeat(10_000);
    for n in 0..300 {
        put(members.store(n % 2 + 1), &format!("/a{}", n % 50), &value).await.unwrap();
    }
    members.open(3).await;
    members.agree().await;
    // It can lead after that, and its history goes back before its absence.
    let mut watch = members.store(3).watch("/".into(), from).unwrap();
    assert_eq!(watch.next().await.unwrap().revision, from + 1);
    assert!(put(members.store(3), "/b", "1").await.is_ok());
    members.close_all().await;
    // All of them are there again after all of them were away.
    for id in 1..=3 {
        members.open(id).await;
    }
    put(members.store(2), "/c", "1").await.unwrap();
    members.agree().await;
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_ends_and_the_others_go_on() {
    let mut members = Members::cluster(3).await;
    put(members.store(2), "/a", "1").await.unwrap();
    let leader = members.leader(2).await;
    let other = if leader == 2 { 3 } else { 2 };
    members.store(other).remove_member(leader).await.unwrap();
    put(members.store(other), "/b", "2").await.unwrap();
    assert!(members.store(other).members().iter().all(|member| member.id != leader));
    let gone = members.stores.remove(&leader).unwrap();
    until("the removed member ends", || gone.watch("/".into(), gone.revision()).err()).await;
    let refused = members.store(other).remove_member(9).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    // Another takes its place, and is put out as one that only follows.
    members.open(4).await;
    put(members.store(4), "/c", "3").await.unwrap();
    members.store(other).remove_member(4).await.unwrap();
    let gone = members.stores.remove(&4).unwrap();
    until("the removed follower ends", || gone.watch("/".into(), gone.revision()).err()).await;
    members.open(5).await;
    put(members.store(5), "/d", "4").await.unwrap();
    members.agree().await;
    members.close_all().await;
}

/// One shows a certificate of another authority; another does not even believe the members'. Both hear no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() {
    let mut members = Members::cluster(1).await;
    let before = dump(members.store(1));
    let (own, theirs) = (Authority::new().issue(2), members.issue(2));
    let refused = || metric(members.store(1), "coracle_store_refused_members_total");
    for tls in [PeerTls { ca_pem: theirs.ca_pem, ..own.clone() }, own] {
        let (listener, dir) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), tempfile::tempdir().unwrap());
        // Keeps this port, so that nobody takes it for a member's.
        let address = listener.local_addr().unwrap().to_string();
        let stranger = Peering {
            way: Way::Sockets { listener, tls, dial: Some(members.dial(2).await) },
            address,
            cluster: "test".into(),
            join: vec![(1, super::members::name(1))],
            routes: Default::default(),
        };
        let so_far = refused();
        tokio::select! {
            biased;
            joined = Store::open_member(Options { node_id: 2, ..Options::new(dir.path()) }, stranger) => {
                panic!("a member of another authority was let in: {joined:?}");
            }
            // It tries again: more than once it is refused, and is not let in meanwhile.
            () = until("it is refused", || (refused() >= so_far + 2).then_some(())) => {}
        }
        assert_eq!(dump(members.store(1)), before);
        assert_eq!(members.store(1).members().len(), 1);
    }
    members.close_all().await;
}
