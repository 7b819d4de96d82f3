//! One run: a cluster, clients and watchers, faults, the verdict.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coracle_history::calls::History;
use coracle_history::verdict::{self, Evidence};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout};

use crate::clients::{Client, Items, Shared, items, watch};
use crate::cluster::Cluster;
use crate::faults;
use crate::leases;
use crate::network::Net;

const CLIENTS: usize = 5;
const MEMBERS: u64 = 3;
/// Within this time after the last fault writes and reads go on.
const HEALED: Duration = Duration::from_secs(60);

/// A mistake made on purpose, which has to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// Clients read what a member has in memory, without asking whether it is the newest.
    StaleReads,
    /// Disks say that they synced and did not.
    LyingDisks,
}

/// What came of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Calls whose answer says something.
    pub calls: usize,
    /// Calls whose outcome nobody was told.
    pub unknown: usize,
    /// Changes that each watcher saw.
    pub changes: usize,
    /// Keep-alives of leases that were answered.
    pub kept_alive: usize,
    /// Simulated time.
    pub took: Duration,
    /// Of everything that clients were told, in order.
    pub fingerprint: u64,
}

/// Simulates so many faults.
///
/// # Errors
/// What is wrong with the store.
pub fn simulate(seed: u64, count: usize, plant: Option<Plant>, verbose: bool) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let report = runtime.block_on(run(seed, count, plant, verbose));
    // What a killed process left behind waits for nothing.
    runtime.shutdown_background();
    report
}

async fn run(seed: u64, count: usize, plant: Option<Plant>, verbose: bool) -> Result<Report> {
    let began = Instant::now();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut part = || StdRng::seed_from_u64(rng.random());
    let net = Net::new(part());
    let cluster = Cluster::new(net, part(), plant == Some(Plant::LyingDisks))?;
    for id in 1..=MEMBERS {
        cluster.open(id).await?;
    }
    let shared = Shared::new(cluster.clone(), plant);
    let watching = Shared::new(cluster.clone(), plant);
    let progress: Vec<Arc<AtomicU64>> = (0..MEMBERS).map(|_| Arc::default()).collect();
    let watches: Vec<_> = (1..=MEMBERS)
        .zip(&progress)
        .map(|(id, at)| tokio::spawn(watch(watching.clone(), id, at.clone())))
        .collect();
    let clients: Vec<_> =
        (0..CLIENTS).map(|n| tokio::spawn(Client::new(n, shared.clone(), part()).run())).collect();
    let holder = tokio::spawn(leases::hold(shared.clone(), part()));
    let mut rng = part();
    for fault in 0..count {
        sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        faults::inject(&cluster, &mut rng, verbose).await.with_context(|| format!("fault {fault}"))?;
        if rng.random_bool(0.7) {
            let before = shared.acknowledged.load(Ordering::Relaxed);
            cluster.heals(HEALED).await.with_context(|| format!("after fault {fault}"))?;
            let goes_on = async {
                while shared.acknowledged.load(Ordering::Relaxed) < before + 5 {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(HEALED, goes_on).await.with_context(|| format!("no writes after fault {fault}"))?;
        }
    }
    shared.stop.store(true, Ordering::Relaxed);
    let mut history = History::default();
    for client in clients {
        history.extend(client.await??);
    }
    let kept_alive = holder.await??;
    let last = settle(&cluster, &progress).await?;
    leases::all_ended(&cluster)?;
    watching.stop.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for watch in watches {
        seen.push(watch.await??);
    }
    let fingerprint = fingerprint(&history, &seen);
    let evidence = Evidence { history, watches: seen, last };
    let (calls, unknown) = evidence.history.counts();
    let changes = evidence.watches.first().map_or(0, Vec::len);
    let mut wrong = verdict::judge(&evidence);
    for id in cluster.ids() {
        cluster.stop(id).await?;
    }
    if !wrong.is_empty() {
        let more = wrong.len().saturating_sub(6);
        wrong.truncate(6);
        bail!("{}\nand {more} more", wrong.join("\n"));
    }
    Ok(Report { calls, unknown, changes, kept_alive, took: began.elapsed(), fingerprint })
}

/// Waits until all members hold the same and every watcher has seen it.
async fn settle(cluster: &Cluster, progress: &[Arc<AtomicU64>]) -> Result<Vec<Items>> {
    let deadline = Instant::now() + HEALED * 2;
    loop {
        // The power may have failed late.
        faults::open_all(cluster).await?;
        let mut held = Vec::new();
        for id in cluster.ids() {
            let store = cluster.store(id).with_context(|| format!("member {id} does not run"))?;
            if store.linearizable().await.is_ok() {
                held.push(items(&store)?.1);
            }
        }
        let newest = held.iter().flat_map(|items| items.values()).map(|(_, revision)| *revision).max();
        let caught_up = progress.iter().all(|at| at.load(Ordering::Relaxed) >= newest.unwrap_or(0));
        let same = held.len() == cluster.ids().len() && held.windows(2).all(|pair| pair[0] == pair[1]);
        // What nobody was told of may come late.
        let revisions =
            || cluster.ids().iter().filter_map(|id| Some(cluster.store(*id)?.revision())).collect::<Vec<_>>();
        let before = revisions();
        sleep(Duration::from_secs(12)).await;
        if caught_up && same && before == revisions() {
            return Ok(held);
        }
        ensure!(Instant::now() < deadline, "members or watchers do not agree: {held:?}, {progress:?}");
    }
}

fn fingerprint(history: &History, seen: &[Vec<coracle_history::Seen>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{history:?}{seen:?}").hash(&mut hasher);
    hasher.finish()
}
