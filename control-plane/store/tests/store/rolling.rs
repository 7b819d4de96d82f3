//! Members come and go one after the other while clients write: no write fails, and whoever is gone disturbs nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_store::Store;

use super::members::{Members, dump, put, until};

/// Writes at one member until told to end; returns how many writes were acknowledged and how long the slowest took.
fn writer(
    store: Store,
    name: u64,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
) -> tokio::task::JoinHandle<Result<(u64, Duration), coracle_store::Error>> {
    tokio::spawn(async move {
        let (mut written, mut slowest) = (0, Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            put(&store, &format!("/w{name}"), &written.to_string()).await?;
            slowest = slowest.max(started.elapsed());
            written += 1;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok((written, slowest))
    })
}

/// Runs writers at all members but one.
async fn write_without(
    members: &Members,
    away: u64,
    all: &[u64],
) -> (
    Arc<AtomicBool>,
    Arc<AtomicU64>,
    Vec<tokio::task::JoinHandle<Result<(u64, Duration), coracle_store::Error>>>,
) {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let others = all.iter().filter(|id| **id != away);
    let writers = others.map(|id| writer(members.store(*id).clone(), *id, stop.clone(), count.clone()));
    let writers = writers.collect();
    (stop, count, writers)
}

async fn goes_on(count: &AtomicU64) {
    let before = count.load(Ordering::Relaxed);
    until("writes go on", || (count.load(Ordering::Relaxed) >= before + 30).then_some(())).await;
}

/// Each member in turn, the leader too, is shut down and started again; writes at the other members all succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_write() {
    let mut members = Members::cluster(3).await;
    let all = [1, 2, 3];
    let leader = members.leader(1).await;
    for id in std::iter::once(leader).chain(all.into_iter().filter(|id| *id != leader)) {
        let (stop, count, writers) = write_without(&members, id, &all).await;
        goes_on(&count).await;
        members.close(id).await;
        goes_on(&count).await;
        members.open(id).await;
        goes_on(&count).await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            let (written, slowest) =
                writer.await.unwrap().unwrap_or_else(|error| panic!("member {id} away: {error}"));
            // Not a figure, but a bound: no write waited for a member to come back.
            assert!(written > 0 && slowest < Duration::from_secs(10), "the slowest write took {slowest:?}");
        }
    }
    members.agree().await;
    members.close_all().await;
}

/// Each member in turn is replaced by a new one with an empty disk; writes at the other members all succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_replaced_without_a_failed_write() {
    let mut members = Members::new();
    members.snapshot_every = 50;
    for id in 1..=3 {
        members.open(id).await;
    }
    let mut all = vec![1, 2, 3];
    for (old, new) in [(2, 4), (1, 5)] {
        let (stop, count, writers) = write_without(&members, old, &all).await;
        goes_on(&count).await;
        // Learners first: the new one follows before it votes, and only then does the old one go.
        members.open(new).await;
        let by = all.iter().copied().find(|id| *id != old).unwrap();
        let listed = || members.store(by).members();
        until("it votes", || listed().iter().any(|member| member.id == new && member.voter).then_some(()))
            .await;
        members.store(by).remove_member(old).await.unwrap();
        let gone = members.stores.remove(&old).unwrap();
        until("the one that was put out ends", || gone.watch("/".into(), gone.revision()).err()).await;
        goes_on(&count).await;
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap().unwrap_or_else(|error| panic!("{old} replaced by {new}: {error}"));
        }
        all = all.into_iter().filter(|id| *id != old).chain([new]).collect();
    }
    members.agree().await;
    assert!(dump(members.store(5)).iter().any(|kv| kv.key == "/w3"));
    members.close_all().await;
}

/// One that was put out while it heard nobody comes back and asks for votes: the others go on under their leader and term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_that_does_not_know_it_disturbs_nobody() {
    let mut members = Members::cluster(3).await;
    put(members.store(1), "/a", "1").await.unwrap();
    members.agree().await;
    let leader = members.leader(1).await;
    let removed = (1..=3).find(|id| *id != leader).unwrap();
    let other = (1..=3).find(|id| *id != leader && *id != removed).unwrap();
    members.isolate(removed);
    members.store(other).remove_member(removed).await.unwrap();
    let alone = members.store(removed);
    until("it has stood for election in vain", || alone.leader().0.is_none().then_some(())).await;
    let before = members.store(other).leader();
    members.heal();
    let gone = members.stores.remove(&removed).unwrap();
    for n in 0..20 {
        put(members.store(other), "/a", &n.to_string()).await.unwrap();
    }
    until("it ends", || gone.watch("/".into(), gone.revision()).err()).await;
    assert_eq!(members.store(other).leader(), before, "nobody else was elected meanwhile");
    members.close_all().await;
}
