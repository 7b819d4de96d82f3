//! Five members: two of them may be lost, a third may not.

use std::time::{Duration, Instant};

use coracle_store::Error;

use super::members::{Members, put, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_members_are_lost_and_a_third_is_too_many() {
    let mut members = Members::cluster(5).await;
    assert_eq!(members.store(1).members().iter().filter(|member| member.voter).count(), 5);
    let mut acknowledged = Vec::new();
    for n in 0..10 {
        let key = format!("/five/before-{n}");
        acknowledged.push((put(members.store(n % 5 + 1), &key, "1").await.unwrap(), key));
    }
    members.agree().await;
    // The leader and another are gone at once.
    let leader = members.leader(1).await;
    let other = leader % 5 + 1;
    let left: Vec<u64> = (1..=5).filter(|id| *id != leader && *id != other).collect();
    let mut watch = members.store(left[0]).watch("/five/".into(), members.store(left[0]).revision()).unwrap();
    members.isolate(leader);
    members.isolate(other);
    let started = Instant::now();
    for (n, id) in left.iter().cycle().take(9).enumerate() {
        let key = format!("/five/without-{n}");
        let mut written = put(members.store(*id), &key, "2").await;
        while n == 0 && matches!(written, Err(Error::Timeout(_))) {
            // It was on its way to the leader that is gone.
            written = put(members.store(*id), &key, "2").await;
        }
        let revision = written.unwrap();
        // Whoever is left reads it.
        let reader = members.store(left[(n + 1) % 3]);
        reader.linearizable().await.unwrap();
        assert_eq!(reader.get(key.as_bytes()).unwrap().mod_revision, revision);
        assert_eq!(watch.next().await.unwrap().revision, revision);
        acknowledged.push((revision, key));
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    for id in [leader, other] {
        let read = members.store(id).linearizable().await;
        assert!(matches!(read, Err(Error::Timeout(_) | Error::Unavailable(_))), "{read:?}");
    }
    // Two that are left of five are no majority: they say so instead of writing or answering.
    members.isolate(left[0]);
    let refused = [left[1], left[2]].map(|id| put(members.store(id), "/five/never", "x"));
    for refused in futures::future::join_all(refused).await {
        assert!(matches!(refused, Err(Error::Timeout(_) | Error::Unavailable(_))), "{refused:?}");
    }
    members.heal();
    members.agree().await;
    put(members.store(leader), "/five/healed", "3").await.unwrap();
    members.agree().await;
    for id in 1..=5 {
        for (revision, key) in &acknowledged {
            let held = members.store(id).get(key.as_bytes()).map(|kv| kv.mod_revision);
            assert_eq!(held, Some(*revision), "member {id} and {key}");
        }
    }
    members.close_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_members_lose_their_disks_and_are_replaced() {
    let mut members = Members::cluster(5).await;
    put(members.store(1), "/a", "1").await.unwrap();
    members.agree().await;
    let leader = members.leader(1).await;
    let other = leader % 5 + 1;
    let left = other % 5 + 1;
    for id in [leader, other] {
        members.lose(id).await;
    }
    put(members.store(left), "/b", "2").await.unwrap();
    // What is gone for good is put out first, so that three are a majority of what remains; then others come.
    for id in [leader, other] {
        members.store(left).remove_member(id).await.unwrap();
    }
    for id in [6, 7] {
        members.open(id).await;
    }
    // Who joined has read that it votes; this one may still be about to.
    let voters = || members.store(left).members().iter().filter(|member| member.voter).count();
    until("five vote", || (voters() == 5).then_some(())).await;
    put(members.store(6), "/c", "3").await.unwrap();
    members.agree().await;
    // Five again: two more may go.
    let gone: Vec<u64> =
        members.stores.keys().copied().filter(|id| *id != 6 && *id != left).take(2).collect();
    for id in gone {
        members.lose(id).await;
    }
    put(members.store(left), "/d", "4").await.unwrap();
    members.agree().await;
    members.close_all().await;
}
