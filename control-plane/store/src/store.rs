//! The handle that everyone holds.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::BoxStream;
use parking_lot::Mutex;

use self::age::Age;
use crate::clock::{Clock, SystemClock};
use crate::disk::{Directory, Files, Place, io_error};
use crate::lease::Lessor;
use crate::machine::Machine;
use crate::mvcc::{Command, Effects, Window};
use crate::raft::node::{Node, REMOVED};
use crate::seal::{self, Seal};
use crate::{
    Error, KeyValue, Member, OpResult, Peering, Range, RangeResponse, Txn, TxnResponse, Versions, WallClock,
    Watch,
};

mod age;
mod fresh;
mod leases;
mod operations;

pub use operations::Status;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where its files lie; made if missing.
    pub data_dir: PathBuf,
    /// The id of this member, from 1; it never changes for a data directory.
    pub node_id: u64,
    /// Revisions kept for watches and for reads at a revision.
    pub history: u64,
    /// The longest that a revision is kept for the same, once another has replaced it; `None`: as long as there is room.
    pub history_age: Option<Duration>,
    /// Most bytes of values kept for the same, so that large objects do not fill the memory.
    pub history_bytes: usize,
    /// Log entries between snapshots; a fifth as many stay in the log behind one.
    pub snapshot_every: u64,
    /// Bytes of log entries after which a snapshot is due earlier, and no entry before it stays.
    pub log_bytes: u64,
    /// Where the bytes go; `None`: files in `data_dir`. For tests.
    pub files: Option<Arc<dyn Files>>,
    /// Whether the store works on its files with threads; otherwise with tasks, as a simulation with a clock of its own needs.
    pub threads: bool,
    /// What time it is.
    pub clock: Arc<dyn WallClock>,
    /// Who seals values before they leave the memory of a member; `None`: they lie open.
    pub sealer: Option<Arc<dyn Seal>>,
    /// The versions of files and of members' talk that it speaks. For tests of upgrades.
    pub versions: Versions,
}

impl Options {
    /// Node 1 with the usual window: 100,000 revisions or 128 MiB.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            node_id: 1,
            history: 100_000,
            history_age: None,
            history_bytes: 128 << 20,
            snapshot_every: 10_000,
            log_bytes: 64 << 20,
            files: None,
            threads: true,
            clock: Arc::new(SystemClock),
            sealer: None,
            versions: Versions::default(),
        }
    }

    pub(crate) fn window(&self) -> Window {
        Window { revisions: self.history.max(1), bytes: self.history_bytes }
    }
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub struct Store {
    machine: Arc<Machine>,
    engine: Arc<Engine>,
    clock: Clock,
    age: Arc<Mutex<Age>>,
    lessor: Arc<Lessor>,
}

enum Engine {
    /// Nothing survives.
    Memory(Mutex<Effects>),
    /// A log on disk.
    Raft(Box<Node>),
}

/// How often keys whose time has come are looked for, and how many go in one log entry.
const WORK_INTERVAL: Duration = Duration::from_millis(500);
const EXPIRY_BATCH: usize = 512;

impl Store {
    /// Opens the store of a data directory, or makes a new cluster of one member there. Returns when this member
    /// leads and everything that was acknowledged before is applied.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Corrupt`], [`Error::FormatTooNew`], [`Error::WrongNode`], [`Error::Io`].
    pub async fn open(options: Options) -> Result<Self, Error> {
        Self::start(options, None).await
    }

    /// Opens the store of a member that meets others. A new member that joins is ready when it votes; an old one of
    /// several at once, although there may be no leader yet: reads and writes wait a little for one and then fail.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::Unavailable`] when the others did not let this member in, [`Error::Invalid`] when they never
    /// will, as one that speaks no version that they do.
    pub async fn open_member(options: Options, peering: Peering) -> Result<Self, Error> {
        Self::start(options, Some(peering)).await
    }

    async fn start(options: Options, peering: Option<Peering>) -> Result<Self, Error> {
        let files = match &options.files {
            Some(files) => files.clone(),
            None => Arc::new(Directory::new(&options.data_dir).map_err(|error| match error.kind() {
                ErrorKind::ResourceBusy => Error::Locked { path: options.data_dir.display().to_string() },
                _ => io_error("making the data directory")(error),
            })?),
        };
        let (node_id, threads) = (options.node_id, options.threads);
        let (dir, newest) = (options.data_dir.clone(), options.versions.newest);
        let log_bytes = options.log_bytes;
        let place = Place { dir, files, node_id, threads, newest, log_bytes, stats: Arc::default() };
        let machine = Arc::new(Machine::new(options.window(), options.sealer.clone()));
        let lessor = Arc::new(Lessor::new(machine.clone()));
        let node = Node::open(place, &options, machine.clone(), lessor.clone(), peering).boxed().await?;
        let age = Arc::new(Mutex::new(Age::new(options.history_age)));
        let store = Self {
            machine,
            engine: Arc::new(Engine::Raft(Box::new(node))),
            clock: options.clock,
            age,
            lessor,
        };
        store.work_in_background();
        Ok(store)
    }

    /// A store for tests of other parts: the same behaviour, nothing on disk.
    pub fn in_memory(options: &Options) -> Self {
        let machine = Arc::new(Machine::new(options.window(), options.sealer.clone()));
        let engine = Arc::new(Engine::Memory(Mutex::default()));
        let age = Arc::new(Mutex::new(Age::new(options.history_age)));
        let lessor = Arc::new(Lessor::new(machine.clone()));
        let store = Self { machine, engine, clock: options.clock.clone(), age, lessor };
        if tokio::runtime::Handle::try_current().is_ok() {
            store.work_in_background();
        }
        store
    }

    /// Deletes keys whose time has come, and keeps the log small, for as long as the store is in use.
    fn work_in_background(&self) {
        let (machine, engine) = (Arc::downgrade(&self.machine), Arc::downgrade(&self.engine));
        let (clock, age, lessor) = (self.clock.clone(), self.age.clone(), Arc::downgrade(&self.lessor));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(WORK_INTERVAL).await;
                let (Some(machine), Some(engine)) = (machine.upgrade(), engine.upgrade()) else { return };
                let Some(lessor) = lessor.upgrade() else { return };
                let store = Self { machine, engine, clock: clock.clone(), age: age.clone(), lessor };
                if store.machine.hub.check().is_err() {
                    return;
                }
                if let Engine::Raft(node) = &*store.engine {
                    let adrift = node.handle.is_adrift();
                    store.machine.hub.adrift.send_if_modified(|was| std::mem::replace(was, adrift) != adrift);
                    node.upkeep().await;
                    if node.put_out().await {
                        store.machine.hub.stop(REMOVED);
                        let _ = node.shutdown().await;
                        return;
                    }
                }
                if let Err(error) = store.expire().await {
                    tracing::debug!(%error, "deleting expired keys failed; it is tried again");
                }
                store.forget_old().await;
            }
        });
    }

    async fn expire(&self) -> Result<(), Error> {
        if let Engine::Raft(node) = &*self.engine
            && !node.is_leader()
        {
            return Ok(());
        }
        loop {
            let keys = self.machine.state.read().expired(self.clock.now_ms(), EXPIRY_BATCH);
            let more = keys.len() == EXPIRY_BATCH;
            if !keys.is_empty() {
                self.propose(Command::Expire { keys }).await?;
            }
            if !more {
                return self.end_leases().await;
            }
        }
    }

    /// Compacts to what was current when the history's age began.
    async fn forget_old(&self) {
        let leads = match &*self.engine {
            Engine::Memory(_) => true,
            Engine::Raft(node) => node.is_leader(),
        };
        let old = self.age.lock().old(self.revision());
        if let Some(revision) = old.filter(|revision| leads && *revision > self.compacted_revision())
            && let Err(error) = self.compact(revision).await
        {
            tracing::debug!(%error, revision, "compaction failed; it is tried again");
        }
    }

    /// Stops: ends all watches, finishes what was begun, closes the files.
    ///
    /// # Errors
    /// [`Error::Io`] when the last writes failed; what was acknowledged is on disk regardless.
    pub async fn shutdown(&self) -> Result<(), Error> {
        self.machine.hub.stop("it was shut down");
        match &*self.engine {
            Engine::Memory(_) => Ok(()),
            Engine::Raft(node) => node.shutdown().boxed().await,
        }
    }

    /// Writes the whole state into one file, without holding up writes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for a store in memory.
    pub async fn save_snapshot(&self, path: &Path) -> Result<(), Error> {
        match &*self.engine {
            Engine::Memory(_) => Err(Error::Invalid("a store in memory has no snapshots".into())),
            Engine::Raft(node) => node.save_snapshot(path).await,
        }
    }

    /// The last applied revision.
    pub fn revision(&self) -> u64 {
        self.machine.revision()
    }

    /// Reads and watches at or after this revision are possible.
    pub fn compacted_revision(&self) -> u64 {
        self.machine.state.read().compacted()
    }

    /// Runs a transaction. When this returns, its writes are on disk and visible here.
    ///
    /// Any member takes it; with several, it has been synced by a majority when this returns.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::NoLease`], [`Error::Unavailable`], [`Error::Timeout`], [`Error::Stopped`]. After the last two the
    /// outcome is unknown: the transaction may have been written.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        txn.check()?;
        if txn.is_read_only() {
            self.linearizable().await?;
            return Ok(self.machine.state.read().read(&txn));
        }
        let mut txn = txn;
        let sealer = &self.machine.sealer;
        seal::seal(sealer, &mut txn).map_err(Error::Seal)?;
        let response = self.propose(Command::Txn { now_ms: self.clock.now_ms(), txn }).await?;
        let mut response =
            response.ok_or_else(|| Error::Stopped("transaction was answered with nothing".into()))?;
        if let Some(OpResult::NoLease(lease)) = response.results.first() {
            return Err(Error::NoLease { lease: *lease });
        }
        seal::open_answer(sealer, &mut response).map_err(Error::Seal)?;
        Ok(response)
    }

    /// Whether a version would be stored differently now: under another key, sealed or open.
    pub fn is_stale(&self, kv: &KeyValue) -> bool {
        let sealed = kv.value.sealed.as_deref();
        self.machine.sealer.as_ref().is_some_and(|sealer| sealer.is_stale(&kv.key, sealed))
    }

    /// The current version of a key, from memory.
    pub fn get(&self, key: &[u8]) -> Option<Arc<KeyValue>> {
        self.machine.state.read().get(key).cloned()
    }

    /// The keys of a range, from memory, all at one revision.
    ///
    /// # Errors
    /// [`Error::Compacted`] or [`Error::FutureRevision`] for a revision outside the window.
    pub fn range(&self, range: &Range) -> Result<RangeResponse, Error> {
        self.machine.range(range)
    }

    /// Every event under `prefix` with a revision greater than `after_revision`, in order. A revision that lies in
    /// the future waits for it.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the window does not reach back so far.
    pub fn watch(&self, prefix: Bytes, after_revision: u64) -> Result<Watch, Error> {
        self.machine.hub.check()?;
        let compact_revision = self.compacted_revision();
        if after_revision < compact_revision {
            return Err(Error::Compacted { compact_revision });
        }
        Ok(Watch::new(self.machine.clone(), prefix, after_revision))
    }

    /// Returns when reads from memory see every write that was acknowledged before the call, by any member.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Timeout`], [`Error::Stopped`].
    pub async fn linearizable(&self) -> Result<(), Error> {
        self.machine.hub.check()?;
        match &*self.engine {
            Engine::Memory(_) => Ok(()),
            Engine::Raft(node) if node.handle.is_alone() => Ok(()),
            Engine::Raft(node) => node.handle.linearizable().boxed().await,
        }
    }

    /// Whether this member has lost touch with the majority for so long that who watches here should watch elsewhere:
    /// reads and writes fail at once then, and watches have no news. False for a store that is alone.
    pub fn adrift(&self) -> tokio::sync::watch::Receiver<bool> {
        self.machine.hub.adrift.subscribe()
    }

    /// The members of the cluster as this one knows them; none for a store in memory.
    pub fn members(&self) -> Vec<Member> {
        match &*self.engine {
            Engine::Memory(_) => Vec::new(),
            Engine::Raft(node) => node.handle.members(),
        }
    }

    /// Removes a member. It ends by itself when it learns of it; its data directory cannot be used again.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is no such member or it is the last; as [`Self::txn`].
    pub async fn remove_member(&self, id: u64) -> Result<(), Error> {
        match &*self.engine {
            Engine::Memory(_) => Err(Error::Invalid("a store in memory has no members".into())),
            Engine::Raft(node) => node.handle.remove(id).boxed().await,
        }
    }

    /// The leader's id as this member knows it, and raft's term; a store in memory leads itself.
    pub fn leader(&self) -> (Option<u64>, u64) {
        match &*self.engine {
            Engine::Memory(_) => (Some(1), 0),
            Engine::Raft(node) => node.handle.leader(),
        }
    }

    /// Asks the other members, one after the other, for what [`Peering::routes`](crate::Peering) of one of them serves
    /// under this path; `None` when none answers with success.
    pub async fn fetch_from_members(&self, path: &str) -> Option<BoxStream<'static, std::io::Result<Bytes>>> {
        match &*self.engine {
            Engine::Memory(_) => None,
            Engine::Raft(node) => node.handle.fetch(path).boxed().await,
        }
    }

    /// Returns when the store has stopped, with the reason; never for a store in memory.
    pub async fn ended(&self) -> String {
        if let Engine::Raft(node) = &*self.engine {
            let mut ended = node.handle.ended.clone();
            let raft = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            return match self.machine.hub.check() {
                Err(Error::Stopped(reason)) => reason,
                _ => raft.unwrap_or_default(),
            };
        }
        std::future::pending().await
    }

    async fn propose(&self, command: Command) -> Result<Option<TxnResponse>, Error> {
        self.machine.hub.check()?;
        match &*self.engine {
            // Boxed: the types below are too deep for the futures of whole calls.
            Engine::Raft(node) => node.handle.propose(command).boxed().await,
            Engine::Memory(effects) => {
                let mut effects = effects.lock();
                let mut responses = self.machine.apply(std::iter::once(&command), &mut effects);
                effects.changes.clear();
                Ok(responses.pop().flatten())
            }
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish()
    }
}
