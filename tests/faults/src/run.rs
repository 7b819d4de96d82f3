//! One run: a cluster, clients and watchers, so many faults, then the verdict.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coracle_e2e::eventually;
use coracle_history::Seen;
use coracle_history::calls::{History, Val};
use coracle_history::verdict::{self, Evidence};
use kube::api::ListParams;
use nix::sched::{CloneFlags, setns};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::clients::{LABEL, Shared, Worker, config_maps, read};
use crate::cluster::{Cluster, SERVERS};
use crate::faults;
use crate::watchers::{self, Progress};

/// How many clients there are.
const CLIENTS: usize = 6;
/// Writes go on within this time after a fault is over.
const HEALED: Duration = Duration::from_secs(30);
/// Writes that have to be acknowledged before the next fault.
const BETWEEN: u64 = 15;

/// What a run is made from.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything that is random.
    pub seed: u64,
    /// How many faults.
    pub count: usize,
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Calls whose answer says something.
    pub calls: usize,
    /// Calls whose outcome nobody was told.
    pub unknown: usize,
    /// Changes that each watcher saw.
    pub changes: usize,
    /// The longest time without an acknowledged write after a fault was over.
    pub slowest: Duration,
}

/// Runs it.
///
/// # Errors
/// What is wrong with the store, or with the machine; with the servers' logs.
pub fn run(options: Options) -> Result<Report> {
    println!("seed {} with {} faults", options.seed, options.count);
    let mut cluster = Cluster::start().context("start the servers")?;
    let outcome = run_on(&mut cluster, options);
    if outcome.is_err() {
        eprintln!("{}", cluster.logs());
    }
    outcome.with_context(|| format!("seed {}", options.seed))
}

fn run_on(cluster: &mut Cluster, options: Options) -> Result<Report> {
    let mut rng = StdRng::seed_from_u64(options.seed);
    let shared = Arc::new(Shared {
        began: Instant::now(),
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
    });
    let crowd = Crowd::start(cluster, &shared, options.seed)?;
    let mut slowest = Duration::ZERO;
    let broken = break_things(cluster, &shared, &mut rng, options.count, &mut slowest);
    let evidence = crowd.end(&shared, broken.is_ok())?;
    broken?;
    let (calls, unknown) = evidence.history.counts();
    let changes = evidence.watches.first().map_or(0, Vec::len);
    let mut wrong = verdict::judge(&evidence);
    for server in 0..SERVERS {
        if !cluster.runs(server)? {
            wrong.push(format!("server {server} does not run at the end"));
        }
    }
    wrong.extend(cluster.complaints().into_iter().filter(|line| line.contains("panicked")));
    if !wrong.is_empty() {
        let more = wrong.len().saturating_sub(12);
        wrong.truncate(12);
        bail!("{}\nand {more} more", wrong.join("\n"));
    }
    Ok(Report { calls, unknown, changes, slowest })
}

fn break_things(
    cluster: &mut Cluster,
    shared: &Shared,
    rng: &mut StdRng,
    count: usize,
    slowest: &mut Duration,
) -> Result<()> {
    go_on(shared, "before the first fault", slowest)?;
    for (index, fault) in faults::plan(rng, count).into_iter().enumerate() {
        println!(
            "{:7.2} s  fault {index}: {:?} for {:?}",
            shared.began.elapsed().as_secs_f64(),
            fault.kind,
            fault.lasts
        );
        fault.inject(cluster).with_context(|| format!("fault {index}, {fault:?}"))?;
        go_on(shared, &format!("after fault {index}, {fault:?}"), slowest)?;
    }
    Ok(())
}

/// Waits until writes are acknowledged again.
fn go_on(shared: &Shared, when: &str, slowest: &mut Duration) -> Result<()> {
    let (started, before) = (Instant::now(), shared.acknowledged.load(Ordering::Relaxed));
    let mut first = None;
    eventually(&format!("writes go on {when}"), HEALED, || {
        let more = shared.acknowledged.load(Ordering::Relaxed) - before;
        if more > 0 && first.is_none() {
            first = Some(started.elapsed());
        }
        Ok(more >= BETWEEN)
    })?;
    *slowest = (*slowest).max(first.unwrap_or_default());
    Ok(())
}

/// Clients and watchers, in a thread of their own on the clients' machine.
struct Crowd {
    thread: std::thread::JoinHandle<Result<Evidence>>,
    /// Set when the servers are well and clients are to come to an end.
    ending: Arc<AtomicBool>,
}

impl Crowd {
    fn start(cluster: &Cluster, shared: &Arc<Shared>, seed: u64) -> Result<Self> {
        let namespace = std::fs::File::open(cluster.clients()?.path())?;
        let kubeconfigs: Vec<PathBuf> = (0..SERVERS).map(|index| cluster.kubeconfig(index)).collect();
        let ending = Arc::new(AtomicBool::new(false));
        let (shared, end) = (shared.clone(), ending.clone());
        let thread = std::thread::spawn(move || {
            // Sockets belong to the machine that the thread which makes them is on.
            setns(namespace, CloneFlags::CLONE_NEWNET).context("go to the clients' machine")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(crowd(kubeconfigs, shared, end, seed))
        });
        Ok(Self { thread, ending })
    }

    /// Ends the clients, lets the watchers catch up, and returns what all have seen.
    fn end(self, shared: &Shared, well: bool) -> Result<Evidence> {
        self.ending.store(true, Ordering::Relaxed);
        if !well {
            shared.stop.store(true, Ordering::Relaxed);
        }
        self.thread.join().map_err(|_| anyhow::anyhow!("the clients panicked"))?
    }
}

async fn crowd(
    kubeconfigs: Vec<PathBuf>,
    shared: Arc<Shared>,
    ending: Arc<AtomicBool>,
    seed: u64,
) -> Result<Evidence> {
    let (from, _) = list(&kubeconfigs[0]).await?;
    // Watchers outlive the clients.
    let watching = Arc::new(Shared {
        began: shared.began,
        stop: AtomicBool::new(false),
        acknowledged: AtomicU64::new(0),
    });
    let mut watches = Vec::new();
    let mut progress: Vec<Progress> = Vec::new();
    for path in &kubeconfigs {
        let (path, watching, at) = (path.clone(), watching.clone(), Progress::default());
        progress.push(at.clone());
        watches.push(tokio::spawn(async move { watchers::watch(&path, from, watching, at).await }));
    }
    let mut workers = Vec::new();
    for number in 0..CLIENTS {
        let worker = Worker::new(number, &kubeconfigs, shared.clone(), seed).await?;
        workers.push(tokio::spawn(worker.run()));
    }
    while !ending.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        ensure!(!workers.iter().any(|worker| worker.is_finished() && !shared.over()), "a client ended early");
    }
    shared.stop.store(true, Ordering::Relaxed);
    let mut history = History::default();
    for worker in workers {
        history.extend(worker.await??);
    }
    let last = settle(&kubeconfigs, &progress).await;
    watching.stop.store(true, Ordering::Relaxed);
    let mut seen: Vec<Vec<Seen>> = Vec::new();
    for watch in watches {
        seen.push(watch.await??);
    }
    Ok(Evidence { history, watches: seen, last: last? })
}

type Items = BTreeMap<String, (Val, u64)>;

async fn list(kubeconfig: &Path) -> Result<(u64, Items)> {
    let maps = config_maps(kubeconfig).await?;
    let params = ListParams::default().labels(LABEL);
    let listed = tokio::time::timeout(Duration::from_secs(20), maps.list(&params));
    let listed = listed.await.context("a list takes too long")??;
    let revision = listed.metadata.resource_version.context("a list without a revision")?.parse()?;
    let items = listed.items.iter().filter_map(|map| Some((map.metadata.name.clone()?, read(map)?)));
    Ok((revision, items.collect()))
}

/// Waits until every watcher has seen everything; what each server holds then.
async fn settle(kubeconfigs: &[PathBuf], progress: &[Progress]) -> Result<Vec<Items>> {
    // The last change that all have to see: writes that nobody was told of may come late, so it is looked for again.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let mut held = Vec::new();
        for path in kubeconfigs {
            held.push(list(path).await?.1);
        }
        let newest = held.iter().flat_map(|items| items.values()).map(|(_, revision)| *revision).max();
        let caught_up = progress.iter().all(|at| at.load(Ordering::Relaxed) >= newest.unwrap_or(0));
        let (same, quiet) = (held.windows(2).all(|pair| pair[0] == pair[1]), Duration::from_secs(1));
        if caught_up && same {
            let before: Vec<u64> = progress.iter().map(|at| at.load(Ordering::Relaxed)).collect();
            tokio::time::sleep(quiet).await;
            if progress.iter().map(|at| at.load(Ordering::Relaxed)).eq(before) {
                return Ok(held);
            }
        }
        ensure!(Instant::now() < deadline, "servers or watchers do not catch up: {held:?}, {progress:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
