//! Brings the state to disk behind the log: changes gather and are written by a thread of their own, at the latest after
//! five seconds or 16 MiB, and at once when the log wants to forget the entries that made them.
//!
//! In a simulation a task takes the thread's part, and waits as long as the simulated disk says.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::guarded;
use super::state::{Applied, Leases, RowChange, Rows, StateDb};
use crate::mvcc::Change;

const MOST_AGE: Duration = Duration::from_secs(5);
const MOST_BYTES: usize = 16 << 20;
/// With this much waiting, applying waits as well.
const STALL_BYTES: usize = 64 << 20;

/// The outcome so far: entries before this index are on disk with their effects, or why there will be no more.
pub(crate) type Durable = Result<u64, String>;

pub(crate) struct Persister {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: StateDb,
    pending: Mutex<Pending>,
    /// Held while rows are written; taken under `pending`.
    writing: Mutex<()>,
    wake: Condvar,
    /// Wakes the task where there is no thread.
    wake_task: Notify,
    durable: watch::Sender<Durable>,
}

#[derive(Default)]
struct Pending {
    rows: Rows,
    leases: Leases,
    bytes: usize,
    applied: Option<Applied>,
    /// The index before which all was taken over, pending or not.
    newest: u64,
    since: Option<Instant>,
    flush: bool,
    stop: bool,
    /// Nobody works here any more.
    ended: bool,
}

impl Persister {
    pub fn start(state: StateDb, applied: &Applied) -> std::io::Result<Self> {
        let durable = watch::Sender::new(Ok(index(applied)));
        let shared = Shared {
            state,
            pending: Mutex::default(),
            writing: Mutex::new(()),
            wake: Condvar::new(),
            wake_task: Notify::new(),
            durable,
        };
        let shared = Arc::new(shared);
        let worker = shared.clone();
        let thread = if shared.state.place().threads {
            Some(std::thread::Builder::new().name("store-state".into()).spawn(move || worker.run())?)
        } else {
            tokio::spawn(async move { worker.run_as_task().await });
            None
        };
        Ok(Self { shared, thread: Mutex::new(thread) })
    }

    /// Takes over the changes of applied entries. Waits while the disk is far behind.
    pub async fn push(&self, changes: Vec<Change>, applied: Applied) -> Result<(), String> {
        let stalled = {
            let mut pending = self.shared.pending.lock();
            changes.into_iter().for_each(|change| pending.add(change));
            pending.newest = index(&applied);
            pending.applied = Some(applied);
            if pending.since.is_none() {
                pending.since = Some(Instant::now());
                self.shared.wake_up();
            } else if pending.bytes >= MOST_BYTES {
                self.shared.wake_up();
            }
            pending.bytes >= STALL_BYTES
        };
        if stalled { self.flush().await.map(drop) } else { self.check() }
    }

    /// Takes over changes that go with the next batch, whenever that is.
    pub fn carry(&self, changes: Vec<Change>) {
        let mut pending = self.shared.pending.lock();
        changes.into_iter().for_each(|change| pending.add(change));
    }

    fn check(&self) -> Result<(), String> {
        self.shared.durable.borrow().as_ref().map(drop).map_err(Clone::clone)
    }

    /// Writes what was taken over before the call; returns the index before which all is on disk.
    pub async fn flush(&self) -> Result<u64, String> {
        let target = {
            let mut pending = self.shared.pending.lock();
            pending.flush = true;
            self.shared.wake_up();
            pending.newest
        };
        let mut durable = self.shared.durable.subscribe();
        let reached =
            durable.wait_for(|durable| durable.as_ref().map_or(true, |index| *index >= target)).await;
        reached.map_err(|_| "the store's state thread ended".to_owned())?.clone()
    }

    /// The index before which all is on disk.
    pub fn durable(&self) -> Durable {
        self.shared.durable.borrow().clone()
    }

    pub fn watch(&self) -> watch::Receiver<Durable> {
        self.shared.durable.subscribe()
    }

    pub fn state(&self) -> &StateDb {
        &self.shared.state
    }

    /// Replaces all rows by those of a snapshot of this format; what was pending is part of the past.
    pub fn replace(
        &self,
        applied: &Applied,
        format: u64,
        leases: &[(u64, u64)],
        rows: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), redb::Error>>,
    ) -> Result<(), redb::Error> {
        // Held throughout, so that the thread does not write older rows over the new ones.
        let mut pending = self.shared.pending.lock();
        let _writing = self.shared.writing.lock();
        self.shared.state.replace(applied, format, leases, rows)?;
        let (stop, ended) = (pending.stop, pending.ended);
        *pending = Pending { stop, ended, newest: index(applied), ..Pending::default() };
        let _before = self.shared.durable.send_replace(Ok(index(applied)));
        Ok(())
    }

    /// Writes what is pending, ends the thread and closes the file.
    pub fn stop(&self) -> Result<(), String> {
        self.shared.pending.lock().stop = true;
        self.shared.wake_up();
        match self.thread.lock().take() {
            Some(thread) => drop(thread.join()),
            None => {
                self.shared.work(self.shared.pending.lock());
            }
        }
        self.shared.state.close();
        self.check()
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        self.shared.pending.lock().stop = true;
        self.shared.wake_up();
    }
}

impl Pending {
    fn add(&mut self, change: Change) {
        match change {
            Change::Put(kv) => {
                self.bytes += kv.weight();
                self.rows.insert((kv.mod_revision, kv.key.clone()), RowChange::Version(kv));
            }
            Change::Tombstone { key, revision } => {
                self.bytes += key.len() + 32;
                self.rows.insert((revision, key), RowChange::Tombstone);
            }
            Change::Forget { key, revision } => {
                let at = (revision, key);
                // The row may be on disk, or on its way there.
                if let Some(RowChange::Version(kv)) = self.rows.remove(&at) {
                    self.bytes = self.bytes.saturating_sub(kv.weight());
                }
                self.rows.insert(at, RowChange::Remove);
            }
            Change::Lease { id, ttl_ms } => {
                self.bytes += 32;
                self.leases.insert(id, ttl_ms);
            }
        }
    }
}

impl Shared {
    fn wake_up(&self) {
        self.wake.notify_one();
        self.wake_task.notify_one();
    }

    fn run(&self) {
        loop {
            let mut pending = self.pending.lock();
            while !pending.due() {
                match pending.since {
                    Some(since) => drop(self.wake.wait_until(&mut pending, (since + MOST_AGE).into_std())),
                    None => self.wake.wait(&mut pending),
                }
            }
            if !self.work(pending) {
                return;
            }
        }
    }

    async fn run_as_task(&self) {
        loop {
            let (due, since) = {
                let pending = self.pending.lock();
                (pending.due(), pending.since)
            };
            if due {
                tokio::time::sleep(self.state.place().files.latency()).await;
                if !self.work(self.pending.lock()) {
                    return;
                }
                continue;
            }
            match since {
                Some(since) => {
                    let _ = tokio::time::timeout_at(since + MOST_AGE, self.wake_task.notified()).await;
                }
                None => self.wake_task.notified().await,
            }
        }
    }

    /// Writes what waits. False when there is no more to come.
    fn work(&self, mut pending: MutexGuard<'_, Pending>) -> bool {
        if pending.ended {
            return false;
        }
        let stop = pending.stop;
        let mut taken = std::mem::take(&mut *pending);
        (pending.stop, pending.ended, pending.newest) = (stop, stop, taken.newest);
        if taken.applied.is_none() {
            // Rows alone wait for entries that they go with.
            pending.rows = std::mem::take(&mut taken.rows);
            pending.leases = std::mem::take(&mut taken.leases);
        }
        let writing = self.writing.lock();
        drop(pending);
        let Some(applied) = taken.applied else {
            // Someone waits for a flush of nothing.
            self.durable.send_modify(|_| ());
            return !stop;
        };
        let written = guarded(|| self.state.commit(&taken.rows, &taken.leases, &applied));
        let written = written.and_then(|result| result.map_err(|error| error.to_string()));
        if let Err(error) = &written {
            tracing::error!(%error, "writing the store's state failed; the store stops");
        }
        let well = written.is_ok();
        drop(writing);
        if !well {
            self.pending.lock().ended = true;
        }
        let _before = self.durable.send_replace(written.map(|()| index(&applied)));
        well && !stop
    }
}

impl Pending {
    fn due(&self) -> bool {
        let old = self.since.is_some_and(|since| since.elapsed() >= MOST_AGE);
        self.stop || self.flush || old || self.bytes >= MOST_BYTES
    }
}

fn index(applied: &Applied) -> u64 {
    applied.log_id.as_ref().map_or(0, |id| id.index + 1)
}
