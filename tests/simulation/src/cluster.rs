//! The members: opened, killed, opened again over what their disks kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coracle_store::{Options, Peering, Store, WallClock, Way};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::StdRng;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use crate::disk::Disk;
use crate::network::{Net, Port, name};

/// What a member may take to open: it joins, or finds out that it cannot.
const OPEN: Duration = Duration::from_secs(90);
/// What a killed process may take to notice.
const END: Duration = Duration::from_secs(120);

/// A wall clock that jumps.
#[derive(Debug)]
struct Clock {
    began: Instant,
    offset: Arc<AtomicI64>,
}

impl WallClock for Clock {
    fn now_ms(&self) -> i64 {
        let passed = i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        1_800_000_000_000 + passed + self.offset.load(Ordering::Relaxed)
    }
}

/// What stays of a member when its process ends.
struct Machine {
    disk: Arc<Disk>,
    offset: Arc<AtomicI64>,
}

/// A process of a member.
#[derive(Clone)]
struct Process {
    store: Store,
    alive: Arc<AtomicBool>,
}

/// The members of a cluster.
pub struct Cluster {
    net: Arc<Net>,
    dir: TempDir,
    began: Instant,
    machines: Mutex<BTreeMap<u64, Machine>>,
    running: Mutex<BTreeMap<u64, Process>>,
    rng: Mutex<StdRng>,
    lies: bool,
}

impl Cluster {
    /// One without members.
    pub fn new(net: Arc<Net>, rng: StdRng, lies: bool) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            net,
            dir: tempfile::tempdir()?,
            began: Instant::now(),
            machines: Mutex::default(),
            running: Mutex::default(),
            rng: Mutex::new(rng),
            lies,
        }))
    }

    /// The network.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The members that have a process, or had one and may have one again.
    pub fn ids(&self) -> Vec<u64> {
        self.machines.lock().keys().copied().collect()
    }

    /// The store of a member whose process lives.
    pub fn store(&self, id: u64) -> Option<Store> {
        self.running.lock().get(&id).map(|process| process.store.clone())
    }

    /// Who leads, as far as a member that lives knows.
    pub fn leader(&self) -> Option<u64> {
        let running = self.running.lock();
        running.values().find_map(|process| process.store.leader().0)
    }

    fn random(&self) -> u64 {
        self.rng.lock().random()
    }

    /// Opens a member over its disk; one that is new joins the others.
    ///
    /// # Errors
    /// When it does not open although nothing is wrong with its disk.
    pub async fn open(&self, id: u64) -> Result<()> {
        self.open_at(id, name(id)).await
    }

    /// The same under an address, `m`, its id, `:` and a number.
    ///
    /// # Errors
    /// As of [`Self::open`].
    pub async fn open_at(&self, id: u64, address: String) -> Result<()> {
        let seed = self.random();
        let (disk, offset) = {
            let mut machines = self.machines.lock();
            let machine = machines
                .entry(id)
                .or_insert_with(|| Machine { disk: Arc::new(Disk::new(self.lies)), offset: Arc::default() });
            (machine.disk.clone(), machine.offset.clone())
        };
        disk.pace(seed, Duration::from_micros(800));
        let alive = Arc::new(AtomicBool::new(true));
        let others = self.running.lock().keys().copied().filter(|other| *other != id).collect::<Vec<u64>>();
        let peering = Peering {
            way: Way::Simulated(Arc::new(Port::new(&self.net, id, &alive))),
            address,
            cluster: "simulated".into(),
            join: others.into_iter().map(|id| (id, name(id))).collect(),
            routes: axum::Router::new(),
        };
        let data_dir = self.data_dir(id);
        std::fs::create_dir_all(&data_dir)?;
        let options = Options {
            node_id: id,
            // Small, so that snapshots, purging and sending of snapshots take part.
            snapshot_every: 60,
            log_bytes: 256 << 10,
            files: Some(disk.clone()),
            threads: false,
            clock: Arc::new(Clock { began: self.began, offset }),
            ..Options::new(data_dir)
        };
        match timeout(OPEN, Store::open_member(options, peering)).await {
            Ok(Ok(store)) => {
                self.running.lock().insert(id, Process { store, alive });
                Ok(())
            }
            Ok(Err(error)) if disk.is_dead() => {
                drop(error);
                Ok(())
            }
            Ok(Err(error)) => Err(error).with_context(|| format!("open member {id}")),
            Err(_) => bail!("member {id} does not open"),
        }
    }

    fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Ends a process without a word: what was not synced is lost in part.
    ///
    /// # Errors
    /// When what is left of it does not notice.
    pub async fn kill(&self, id: u64) -> Result<()> {
        let Some(process) = self.running.lock().remove(&id) else { return Ok(()) };
        process.alive.store(false, Ordering::Relaxed);
        if let Some(machine) = self.machines.lock().get(&id) {
            machine.disk.cut();
        }
        let ended = timeout(END, process.store.shutdown()).await;
        ended.with_context(|| format!("what is left of member {id} hangs"))?.ok();
        self.power(id);
        Ok(())
    }

    /// Gives a disk its power back.
    pub fn power(&self, id: u64) {
        let seed = self.random();
        if let Some(machine) = self.machines.lock().get(&id) {
            machine.disk.restart(seed);
        }
    }

    /// Ends a process in order.
    ///
    /// # Errors
    /// When it hangs.
    pub async fn stop(&self, id: u64) -> Result<()> {
        let Some(process) = self.running.lock().remove(&id) else { return Ok(()) };
        let ended = timeout(END, process.store.shutdown()).await;
        process.alive.store(false, Ordering::Relaxed);
        ended.with_context(|| format!("member {id} does not stop"))?.ok();
        Ok(())
    }

    /// Takes a member's disk away.
    pub fn forget(&self, id: u64) {
        self.machines.lock().remove(&id);
    }

    /// The power of a member fails at a write or sync that is so far ahead.
    pub fn fail_after(&self, id: u64, operations: u64) {
        if let Some(machine) = self.machines.lock().get(&id) {
            machine.disk.fail_after(operations);
        }
    }

    /// Whether the power of a member's disk failed.
    pub fn is_dead(&self, id: u64) -> bool {
        self.machines.lock().get(&id).is_some_and(|machine| machine.disk.is_dead())
    }

    /// Makes a disk slow, or quick again.
    pub fn pace(&self, id: u64, most: Duration) {
        let seed = self.random();
        if let Some(machine) = self.machines.lock().get(&id) {
            machine.disk.pace(seed, most);
        }
    }

    /// Sets a member's wall clock, in milliseconds from the right time.
    pub fn set_clock(&self, id: u64, offset: i64) {
        if let Some(machine) = self.machines.lock().get(&id) {
            machine.offset.store(offset, Ordering::Relaxed);
        }
    }

    /// Waits for a leader that takes writes.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn heals(&self, within: Duration) -> Result<()> {
        let healed = async {
            loop {
                for id in self.ids() {
                    if let Some(store) = self.store(id)
                        && store.linearizable().await.is_ok()
                    {
                        return;
                    }
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(within, healed).await.context("the cluster does not heal")
    }
}
