//! The raft log: `log.redb` and the journal before it, written by a thread of its own, with the newest entries kept in memory.
//!
//! The thread takes all that waits, writes it into the journal and syncs once, then tells everyone. The database takes over
//! when the journal is full, and what is more than appending goes there at once. After a failed write nothing more is
//! accepted: nobody knows what is on disk then.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot};

use super::{Entry, LogId, Types, Vote};
use crate::Error;
use crate::disk::persister::Persister;
use crate::disk::{JOURNALED, Place};
use crate::mvcc::Command;

mod database;
mod journal;
mod writer;

use database::{Batch, Found, LogDb, Mark};
use journal::Journal;
use writer::{Job, Step, Writer};

/// Entries kept in memory, and their bytes, whichever bound is met first.
const TAIL_ENTRIES: usize = 8192;
const TAIL_BYTES: usize = 8 << 20;

/// Entries sent to a member in one call, and the bytes after which no further one is added.
const SENT_ENTRIES: u64 = 512;
const SENT_BYTES: usize = 4 << 20;

/// A handle to the log; clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
    /// Who knows what is on disk; `None` where nobody asks.
    persister: Option<Arc<Persister>>,
}

struct Shared {
    database: LogDb,
    tail: RwLock<Tail>,
    vote: Mutex<Option<Vote>>,
    /// Bytes appended since they were last asked about.
    appended: AtomicU64,
    /// Why nothing is accepted any more.
    poisoned: OnceLock<String>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Who writes where there is no thread.
    task: Mutex<Option<(Writer, mpsc::Receiver<Job>)>>,
    wake_task: Notify,
}

/// What is known without reading the disk.
#[derive(Default)]
struct Tail {
    /// The newest entries, without gaps, each with its weight.
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
    last: Option<LogId>,
    purged: Option<LogId>,
    /// Entries before this index are in the database.
    written: u64,
}

/// Makes an empty log that begins behind an entry.
pub(crate) fn begin(place: &Place, vote: &Vote, purged: Option<&LogId>) -> Result<(), Error> {
    let (database, _) = LogDb::open(place)?;
    let batch = Batch { vote: Some(vote), purged, ..Batch::default() };
    database.commit(&batch, &mut Vec::new()).map_err(|error| place.error("log.redb", error))?;
    database.close();
    Ok(())
}

/// Opens the journal; what it holds goes into the database. Also says whether it counts.
fn resume(place: &Place, database: &LogDb, found: &mut Found) -> Result<(Journal, bool), Error> {
    let (mut journal, mut entries) = Journal::open(place, found.journal)?;
    let next = found.last.or(found.purged).map_or(0, |id| id.index + 1);
    entries.retain(|entry| found.purged.is_none_or(|purged| entry.log_id.index > purged.index));
    for (index, entry) in (next..).zip(&entries) {
        if entry.log_id.index != index {
            return Err(place.corrupt("log.wal", &format!("log entry {index} is missing")));
        }
        found.last = Some(entry.log_id);
    }
    let Some(Mark { counts: true, .. }) = found.journal else { return Ok((journal, false)) };
    let generation = journal.generation() + 1;
    let mark = Some(Mark { generation, counts: true });
    let batch = Batch { entries: entries.iter().collect(), journal: mark, ..Batch::default() };
    let written = database.commit(&batch, &mut Vec::new());
    written.map_err(|error| place.error("log.redb", error))?;
    journal.restart(generation);
    Ok((journal, true))
}

impl Log {
    /// Opens the log, checks every entry, and starts its thread.
    pub fn open(place: &Place, persister: Option<Arc<Persister>>) -> Result<Self, Error> {
        let (database, mut found) = LogDb::open(place)?;
        let (journal, counts) = match place.newest >= JOURNALED {
            true => resume(place, &database, &mut found).map(|(journal, counts)| (Some(journal), counts))?,
            false => (None, false),
        };
        let written = found.last.or(found.purged).map_or(0, |id| id.index + 1);
        let tail =
            Tail { last: found.last.or(found.purged), purged: found.purged, written, ..Tail::default() };
        let shared = Arc::new(Shared {
            database,
            tail: RwLock::new(tail),
            vote: Mutex::new(found.vote),
            appended: AtomicU64::new(0),
            poisoned: OnceLock::new(),
            thread: Mutex::new(None),
            task: Mutex::new(None),
            wake_task: Notify::new(),
        });
        let (jobs, queue) = mpsc::channel();
        let (worker, writer) = (shared.clone(), Writer::new(&shared, found.leftover, (journal, counts)));
        if place.threads {
            let run = move || writer.run(&worker, &queue);
            let thread = std::thread::Builder::new().name("store-log".into()).spawn(run);
            *shared.thread.lock() = Some(thread.map_err(crate::disk::io_error("starting the log's thread"))?);
        } else {
            *shared.task.lock() = Some((writer, queue));
            let files = place.files.clone();
            tokio::spawn(async move { writer::run_as_task(&worker, &*files).await });
        }
        Ok(Self { shared, jobs, persister })
    }

    /// Gives free pages back to the disk.
    pub fn defragment(&self) -> Result<(), Error> {
        let (done, mut wait) = oneshot::channel();
        let failed = crate::disk::io_error("emptying the log's journal");
        self.send(Job::Empty { done }).map_err(&failed)?;
        let closed = || io::Error::other("the log is closed");
        let emptied = match &mut *self.shared.task.lock() {
            Some((writer, queue)) => {
                while writer.step(&self.shared, queue, None) == Step::Done {}
                wait.try_recv().map_err(|_| closed())
            }
            None => wait.blocking_recv().map_err(|_| closed()),
        };
        emptied.flatten().map_err(failed)?;
        self.shared.database.defragment()
    }

    /// Bytes appended since [`Self::forget_appended`].
    pub fn appended(&self) -> u64 {
        self.shared.appended.load(Ordering::Relaxed)
    }

    pub fn forget_appended(&self) {
        self.shared.appended.store(0, Ordering::Relaxed);
    }

    /// The last entry that is gone.
    pub fn purged(&self) -> Option<u64> {
        self.shared.tail.read().purged.map(|id| id.index)
    }

    /// Whether anything was ever written.
    pub fn is_empty(&self) -> bool {
        self.shared.tail.read().last.is_none() && self.shared.vote.lock().is_none()
    }

    /// Writes what waits, ends the thread and closes the file.
    pub fn stop(&self) -> Result<(), String> {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.shared.thread.lock().take() {
            let _ = thread.join();
        }
        if let Some((mut writer, queue)) = self.shared.task.lock().take() {
            while writer.step(&self.shared, &queue, None) == Step::Done {}
        }
        self.shared.wake_task.notify_one();
        self.shared.database.close();
        self.shared.poisoned.get().map_or(Ok(()), |reason| Err(reason.clone()))
    }

    fn send(&self, job: Job) -> io::Result<()> {
        if let Some(reason) = self.shared.poisoned.get() {
            return Err(io::Error::other(reason.clone()));
        }
        let sent = self.jobs.send(job).map_err(|_| io::Error::other("the log is closed"));
        self.shared.wake_task.notify_one();
        sent
    }

    /// Has a job done and waits for it.
    async fn done(&self, job: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Job) -> io::Result<()> {
        let (done, wait) = oneshot::channel();
        self.send(job(done))?;
        wait.await.map_err(|_| io::Error::other("the log is closed"))?
    }
}

impl Tail {
    fn push(&mut self, entry: Entry) -> usize {
        let weight = weight(&entry);
        self.bytes += weight;
        self.last = Some(entry.log_id);
        self.entries.push_back((entry, weight));
        weight
    }

    /// Lets go of entries that are on disk, down to the bounds.
    fn shrink(&mut self) {
        while self.entries.len() > TAIL_ENTRIES || self.bytes > TAIL_BYTES {
            let written = self.written;
            let Some((_, weight)) = self.entries.pop_front_if(|(entry, _)| entry.log_id.index < written)
            else {
                return;
            };
            self.bytes = self.bytes.saturating_sub(weight);
        }
    }

    /// Entries before `end` that the database does not have.
    fn journaled(&self, end: u64) -> Vec<Entry> {
        let behind = |(entry, _): &&(Entry, usize)| entry.log_id.index >= self.written;
        let wanted = self.entries.iter().rev().take_while(behind).map(|(entry, _)| entry);
        let mut entries: Vec<_> = wanted.filter(|entry| entry.log_id.index < end).cloned().collect();
        entries.reverse();
        entries
    }

    /// Entries from `start` up to, not including, `end`; `None` when some are on disk only.
    fn get(&self, start: u64, end: u64) -> Option<Vec<Entry>> {
        let first = self.entries.front().map_or(u64::MAX, |(entry, _)| entry.log_id.index);
        let end = end.min(self.last.map_or(0, |id| id.index + 1));
        if start >= end {
            return Some(Vec::new());
        }
        let skip = usize::try_from(start.checked_sub(first)?).ok()?;
        let count = usize::try_from(end - start).ok()?;
        Some(self.entries.iter().skip(skip).take(count).map(|(entry, _)| entry.clone()).collect())
    }
}

/// Roughly the bytes of an entry.
fn weight(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Normal(request) => match &*request.0 {
            Command::Txn { txn, .. } => txn.weight(),
            Command::Expire { keys } => keys.iter().map(|(key, _)| key.len() + 8).sum(),
            Command::Compact { .. } | Command::Grant { .. } | Command::Revoke { .. } => 16,
        },
        _ => 64,
    };
    payload + 256
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let tail = self.shared.tail.read();
        // Purged entries may still be on disk.
        let start = start.max(tail.purged.map_or(0, |id| id.index + 1));
        if let Some(entries) = tail.get(start, end) {
            return Ok(entries);
        }
        // The older part from disk, the rest from memory: what is in memory may not be on disk yet.
        let first = tail.entries.front().map_or(u64::MAX, |(entry, _)| entry.log_id.index);
        let newer = if first < end { tail.get(first, end).unwrap_or_default() } else { Vec::new() };
        drop(tail);
        let mut entries = self.shared.database.read(start, end.min(first)).map_err(io::Error::other)?;
        entries.extend(newer);
        Ok(entries)
    }

    /// What is sent to a member at a time: large entries go in smaller numbers.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let end = end.min(start.saturating_add(SENT_ENTRIES));
        let mut entries = self.try_get_log_entries(start..end).await?;
        let mut bytes = 0;
        let fits = entries.iter().take_while(|entry| {
            let before = bytes;
            bytes += weight(entry);
            before < SENT_BYTES
        });
        let count = fits.count();
        entries.truncate(count);
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(*self.shared.vote.lock())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let tail = self.shared.tail.read();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.done(|done| Job::Vote { vote, done }).await?;
        *self.shared.vote.lock() = Some(vote);
        Ok(())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        {
            let mut tail = self.shared.tail.write();
            let weight = entries.iter().map(|entry| tail.push(entry.clone())).sum::<usize>();
            self.shared.appended.fetch_add(weight as u64, Ordering::Relaxed);
        }
        self.send(Job::Append { entries, callback })
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let keep = last.map_or(0, |id| id.index + 1);
        if self.shared.tail.read().last.is_none_or(|newest| newest.index < keep) {
            return Ok(());
        }
        // Until then the writer may look here for entries on their way into the database, and expects no gap.
        self.done(|done| Job::Truncate { keep, done }).await?;
        let mut tail = self.shared.tail.write();
        while let Some((_, weight)) = tail.entries.pop_back_if(|(entry, _)| entry.log_id.index >= keep) {
            tail.bytes = tail.bytes.saturating_sub(weight);
        }
        tail.last = last;
        // Entries that come now are not in the database although older ones with their indexes were.
        tail.written = tail.written.min(keep);
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        if let Some(persister) = &self.persister {
            // A snapshot was built before, which brought the state to disk; without it the entries are all there is.
            let mut durable = persister.durable().map_err(io::Error::other)?;
            if durable <= upto.index {
                durable = persister.flush().await.map_err(io::Error::other)?;
            }
            if durable <= upto.index {
                return Err(io::Error::other("refusing to purge entries whose effects are not on disk"));
            }
        }
        {
            let mut tail = self.shared.tail.write();
            while let Some((_, weight)) =
                tail.entries.pop_front_if(|(entry, _)| entry.log_id.index <= upto.index)
            {
                tail.bytes = tail.bytes.saturating_sub(weight);
            }
            tail.purged = Some(upto);
            if tail.last.is_none_or(|last| last.index < upto.index) {
                tail.last = Some(upto);
            }
        }
        self.send(Job::Purge { upto })
    }
}
