//! Reads at a freshness that the caller names, at any member.

use std::time::{Duration, Instant};

use coracle_store::{Error, Freshness, Range, Store};

use super::members::{Members, put, until, until_asked};

async fn read(store: &Store, freshness: Freshness) -> Result<Option<String>, Error> {
    let found = store.read(&Range::prefix("/fresh"), freshness).await?;
    Ok(found.kvs.first().map(|kv| String::from_utf8_lossy(&kv.value.json).into_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_as_fresh_as_asked_without_asking_the_leader() {
    let mut members = Members::cluster(3).await;
    let leader = members.leader(1).await;
    let follower = leader % 3 + 1;
    let other = follower % 3 + 1;
    let first = put(members.store(leader), "/fresh", "1").await.unwrap();
    for id in [leader, follower, other] {
        for freshness in
            [Freshness::Linearizable, Freshness::AtLeast(first), Freshness::Within(Duration::from_secs(5))]
        {
            let found = read(members.store(id), freshness).await.unwrap();
            // What the leader had committed some seconds ago may be less than what it has now.
            let lags = matches!(freshness, Freshness::Within(_)) && id != leader;
            assert!(
                found.as_deref() == Some("1") || (lags && found.is_none()),
                "{id} {freshness:?} {found:?}"
            );
        }
        assert!(read(members.store(id), Freshness::Within(Duration::MAX)).await.is_ok());
        // Word of now: everything that was acknowledged before is there.
        let found = read(members.store(id), Freshness::Within(Duration::ZERO)).await.unwrap();
        assert_eq!(found.as_deref(), Some("1"), "member {id}");
    }
    // One waits for a revision that is on its way, and not for one that nobody has.
    let store = members.store(follower).clone();
    let waiting = tokio::spawn(async move { read(&store, Freshness::AtLeast(first + 1)).await });
    assert_eq!(put(members.store(leader), "/fresh", "2").await.unwrap(), first + 1);
    assert_eq!(waiting.await.unwrap().unwrap().as_deref(), Some("2"));
    let early = read(members.store(other), Freshness::AtLeast(first + 9)).await;
    let Err(Error::FutureRevision { requested, current }) = early else { panic!("{early:?}") };
    assert!(requested == first + 9 && current <= first + 1);

    // Cut off from the leader it still has what it had, and says so; it does not claim to be fresh.
    members.agree().await;
    members.isolate(follower);
    let cut = Instant::now();
    put(members.store(leader), "/fresh", "3").await.unwrap();
    let alone = members.store(follower);
    assert_eq!(read(alone, Freshness::AtLeast(0)).await.unwrap().as_deref(), Some("2"));
    assert_eq!(read(alone, Freshness::AtLeast(first)).await.unwrap().as_deref(), Some("2"));
    let minute = read(alone, Freshness::Within(Duration::from_secs(60))).await;
    assert!(cut.elapsed() > Duration::from_secs(5) || minute.unwrap().as_deref() == Some("2"));
    for freshness in [Freshness::Within(Duration::ZERO), Freshness::Linearizable] {
        let refused = read(alone, freshness).await;
        assert!(
            matches!(refused, Err(Error::Timeout(_) | Error::Unavailable(_))),
            "{freshness:?} {refused:?}"
        );
    }
    members.heal();
    // The first word after that brings it all.
    let found = until_asked("a follower that is back", async || {
        match read(members.store(follower), Freshness::Within(Duration::ZERO)).await {
            Err(Error::Timeout(_) | Error::Unavailable(_)) => None,
            found => Some(found.unwrap()),
        }
    });
    let found = found.await;
    assert_eq!(found.as_deref(), Some("3"));
    members.close_all().await;
}

/// A leader that is cut off does not know that it was replaced, and goes on sending to a member that is cut off with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_word_of_a_leader_without_a_majority_is_not_fresh() {
    let mut members = Members::cluster(5).await;
    let old = members.leader(1).await;
    let with_it = old % 5 + 1;
    put(members.store(old), "/fresh", "1").await.unwrap();
    members.agree().await;
    let others: Vec<u64> = (1..=5).filter(|id| ![old, with_it].contains(id)).collect();
    for other in &others {
        for cut in [old, with_it] {
            members.cut(cut, *other);
            members.cut(*other, cut);
        }
    }
    let store = members.store(others[0]);
    until("another leader", || store.leader().0.filter(|id| others.contains(id))).await;
    put(store, "/fresh", "2").await.unwrap();
    for id in [with_it, old] {
        let stale = read(members.store(id), Freshness::Within(Duration::ZERO)).await;
        assert!(matches!(stale, Err(Error::Unavailable(_) | Error::Timeout(_))), "member {id}: {stale:?}");
    }
    until("they know that they are cut off", || {
        [old, with_it].iter().all(|id| *members.store(*id).adrift().borrow()).then_some(())
    })
    .await;
    let stale = read(members.store(with_it), Freshness::Within(Duration::from_secs(1))).await;
    assert!(matches!(stale, Err(Error::Unavailable(_))), "{stale:?}");
    members.heal();
    members.agree().await;
    assert_eq!(read(members.store(with_it), Freshness::AtLeast(0)).await.unwrap().as_deref(), Some("2"));
    members.close_all().await;
}
