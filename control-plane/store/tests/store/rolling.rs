//! Members come and go one after the other while clients write: no write fails, and whoever is gone disturbs nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coracle_store::{Error, Store};
use tokio::task::JoinHandle;

use super::members::{Members, dump, put, until};

/// Writes at one member until told to end.
struct Writer {
    /// How many writes were acknowledged.
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<(), Error>>,
}

impl Writer {
    fn start(store: Store, name: u64) -> Self {
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, over) = (written.clone(), stop.clone());
        let task = tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed);
                put(&store, &format!("/w{name}"), &n.to_string()).await?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        Self { written, stop, task }
    }

    async fn end(self) -> Result<(), Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Runs writers at all members but one.
fn write_without(members: &Members, away: u64, all: &[u64]) -> Vec<Writer> {
    let others = all.iter().filter(|id| **id != away);
    others.map(|id| Writer::start(members.store(*id).clone(), *id)).collect()
}

/// Waits until each of them has been acknowledged several writes from now on.
async fn each_goes_on(writers: &[Writer]) {
    let counts = || writers.iter().map(|writer| writer.written.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let before = counts();
    let moved = || counts().iter().zip(&before).all(|(now, before)| *now >= before + 10);
    // One that failed writes no more: its error says more than that it stands still.
    let ended = || writers.iter().any(|writer| writer.task.is_finished());
    until("each writer goes on", || (moved() || ended()).then_some(())).await;
}

/// Each member in turn, the leader too, is shut down and started again; writes at the other members all succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_write() {
    let mut members = Members::cluster(3).await;
    let all = [1, 2, 3];
    let leader = members.leader(1).await;
    for id in std::iter::once(leader).chain(all.into_iter().filter(|id| *id != leader)) {
        let writers = write_without(&members, id, &all);
        each_goes_on(&writers).await;
        members.close(id).await;
        // Nobody waits for the member to come back.
        each_goes_on(&writers).await;
        members.open(id).await;
        each_goes_on(&writers).await;
        for writer in writers {
            writer.end().await.unwrap_or_else(|error| panic!("member {id} away: {error}"));
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
        let writers = write_without(&members, old, &all);
        each_goes_on(&writers).await;
        // Learners first: the new one follows before it votes, and only then does the old one go.
        members.open(new).await;
        let by = all.iter().copied().find(|id| *id != old).unwrap();
        let listed = || members.store(by).members();
        until("it votes", || listed().iter().any(|member| member.id == new && member.voter).then_some(()))
            .await;
        members.store(by).remove_member(old).await.unwrap();
        let gone = members.stores.remove(&old).unwrap();
        until("the one that was put out ends", || gone.watch("/".into(), gone.revision()).err()).await;
        each_goes_on(&writers).await;
        for writer in writers {
            writer.end().await.unwrap_or_else(|error| panic!("{old} replaced by {new}: {error}"));
        }
        all = all.into_iter().filter(|id| *id != old).chain([new]).collect();
    }
    members.agree().await;
    assert!(dump(members.store(5)).iter().any(|kv| kv.key == "/w3"));
    members.close_all().await;
}

/// What was sent to a leader that is put out is answered, however much it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_put_out_owes_no_answer() {
    let mut members = Members::cluster(3).await;
    let leader = members.leader(1).await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    let writers: Vec<Writer> = (0..32)
        .flat_map(|n| others.iter().map(move |id| (n, *id)))
        .map(|(n, id)| Writer::start(members.store(id).clone(), n * 10 + id))
        .collect();
    each_goes_on(&writers).await;
    members.store(others[0]).remove_member(leader).await.unwrap();
    let gone = members.stores.remove(&leader).unwrap();
    until("the one that was put out ends", || gone.watch("/".into(), gone.revision()).err()).await;
    each_goes_on(&writers).await;
    for writer in writers {
        writer.end().await.unwrap_or_else(|error| panic!("leader {leader} put out: {error}"));
    }
    members.agree().await;
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
