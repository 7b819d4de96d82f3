//! The log's thread.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::database::{Batch, Mark};
use super::journal::Journal;
use super::{Entry, LogId, Shared, Types, Vote};
use crate::disk::{Files, guarded};

/// What the thread is asked to do, in this order.
pub(super) enum Job {
    Append {
        entries: Vec<Entry>,
        callback: IOFlushed<Types>,
    },
    Vote {
        vote: Vote,
        done: oneshot::Sender<io::Result<()>>,
    },
    Truncate {
        keep: u64,
        done: oneshot::Sender<io::Result<()>>,
    },
    Purge {
        upto: LogId,
    },
    /// The journal is to hold nothing and to be small.
    Empty {
        done: oneshot::Sender<io::Result<()>>,
    },
    Stop,
}

/// Most entries written in one transaction, roughly.
const MOST_ENTRIES: usize = 4096;
/// Purged entries are removed a few at a time, so that no writer waits long for it.
const REMOVE: u64 = 512;

/// What a step did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    Nothing,
    Stopped,
}

/// Who writes what waits.
pub(super) struct Writer {
    scratch: Vec<u8>,
    /// Entries below `purged` that are still there begin at `removed`.
    purged: u64,
    removed: u64,
    jobs: Vec<Job>,
    /// None in a member of version 1.
    journal: Option<Journal>,
    /// Whether the database says that the journal counts.
    counts: bool,
    /// The index behind the last entry, wherever that is.
    next: u64,
}

impl Writer {
    pub fn new(shared: &Shared, leftover: Option<u64>, (journal, counts): (Option<Journal>, bool)) -> Self {
        let tail = shared.tail.read();
        let purged = tail.purged.map_or(0, |id| id.index + 1);
        let (removed, next) = (leftover.unwrap_or(purged), tail.last.map_or(0, |id| id.index + 1));
        Self { scratch: Vec::new(), purged, removed, jobs: Vec::new(), journal, counts, next }
    }

    /// Works as a thread.
    pub fn run(mut self, shared: &Shared, queue: &Receiver<Job>) {
        loop {
            let Ok(first) = receive(queue, self.is_untidy(shared)) else { return };
            if let Step::Stopped = self.step(shared, queue, first) {
                return;
            }
        }
    }

    /// Whether there is something to remove, and it may be.
    fn is_untidy(&self, shared: &Shared) -> bool {
        self.removed < self.purged && shared.poisoned.get().is_none()
    }

    /// Does a job and what waits behind it, with one sync.
    pub fn step(&mut self, shared: &Shared, queue: &Receiver<Job>, first: Option<Job>) -> Step {
        self.jobs.extend(first);
        gather(queue, &mut self.jobs);
        let stop = matches!(self.jobs.last(), Some(Job::Stop));
        let counts = self.counts;
        let idle = self.jobs.iter().all(|job| matches!(job, Job::Stop)) && !(stop && counts);
        if idle && !self.is_untidy(shared) {
            self.jobs.drain(..).for_each(|job| job.finish(&Ok(())));
            return if stop { Step::Stopped } else { Step::Nothing };
        }
        let result = self.write(shared, stop);
        let purged = self.jobs.iter().any(|job| matches!(job, Job::Purge { .. }));
        self.jobs.drain(..).for_each(|job| job.finish(&result));
        if !stop && result.is_ok() && self.journal.as_ref().is_some_and(|journal| journal.is_due(purged)) {
            // Everyone has been answered; what fails now poisons the log.
            let _ = self.commit(shared, false);
        }
        if stop { Step::Stopped } else { Step::Done }
    }

    /// Writes the jobs into the journal, where it can take them, or into the database.
    fn write(&mut self, shared: &Shared, stop: bool) -> Result<(), String> {
        if let Some(reason) = shared.poisoned.get() {
            return Err(reason.clone());
        }
        let appends = self.jobs.iter().all(|job| match job {
            Job::Append { .. } => true,
            // That entries are gone is said when the database takes over, unless those that come leave a gap.
            Job::Purge { upto } => upto.index + 1 < self.next,
            _ => false,
        });
        if appends && !self.jobs.is_empty() {
            let written = guarded(|| self.append(shared)).and_then(|done| done.map_err(|e| e.to_string()));
            if poisoned(shared, written)? {
                return Ok(());
            }
        }
        self.commit(shared, stop)
    }

    /// Writes entries into the journal. False where it does not take them.
    fn append(&mut self, shared: &Shared) -> Result<bool, redb::Error> {
        let Some(journal) = &mut self.journal else { return Ok(false) };
        if !self.counts {
            let mark = Mark { generation: journal.generation(), counts: true };
            let batch = Batch { journal: Some(mark), ..Batch::default() };
            shared.database.commit(&batch, &mut self.scratch)?;
            self.counts = true;
        }
        let mut entries = self.jobs.iter().flat_map(Job::entries).peekable();
        if entries.peek().is_some() && !shared.database.timed(|| journal.append(entries))? {
            return Ok(false);
        }
        self.note();
        Ok(true)
    }

    /// Writes the jobs and what is in the journal into the database.
    fn commit(&mut self, shared: &Shared, stop: bool) -> Result<(), String> {
        let keep = self.jobs.iter().find_map(|job| match job {
            Job::Truncate { keep, .. } => Some(*keep),
            _ => None,
        });
        let end = self.next.min(keep.unwrap_or(u64::MAX));
        let (journaled, purged, written) = {
            let tail = shared.tail.read();
            (tail.journaled(end), tail.purged, tail.written)
        };
        let mut batch = batch(&self.jobs);
        batch.entries.splice(0..0, &journaled);
        if self.counts {
            // Purged entries may have been in the journal alone.
            batch.purged = purged.as_ref();
        }
        if let Some(upto) = batch.purged {
            self.purged = self.purged.max(upto.index + 1);
        }
        if self.removed < self.purged {
            // Where the journal is emptied as many go as may have come by it before.
            let due = self.journal.as_ref().is_some_and(|journal| journal.is_due(true));
            let most = if due { u64::MAX } else { REMOVE };
            let to = self.purged.min(self.removed.saturating_add(most));
            batch.remove = Some((self.removed, to));
            // Behind what the database holds there is nothing to remove.
            let held = batch.entries.last().map_or(written, |entry| written.max(entry.log_id.index + 1));
            self.removed = if to >= held { self.purged } else { to };
        }
        let next = self.journal.as_ref().filter(|_| self.counts).map(|journal| journal.generation() + 1);
        batch.journal = next.map(|generation| Mark { generation, counts: !stop });
        let scratch = &mut self.scratch;
        let written = guarded(|| shared.database.commit(&batch, scratch));
        drop(batch);
        poisoned(shared, written.and_then(|result| result.map_err(|error| error.to_string())))?;
        self.note();
        if let (Some(journal), Some(generation)) = (&mut self.journal, next) {
            journal.restart(generation);
            let emptied = self.jobs.iter().any(|job| matches!(job, Job::Empty { .. }));
            let shrunk = if emptied { journal.shrink() } else { Ok(()) };
            poisoned(shared, shrunk.map_err(|error| error.to_string()))?;
        }
        let mut tail = shared.tail.write();
        tail.written = self.next;
        tail.shrink();
        Ok(())
    }

    /// Notes what the jobs have done to the end of the log.
    fn note(&mut self) {
        for job in &self.jobs {
            match job {
                Job::Append { entries, .. } => {
                    self.next = entries.last().map_or(self.next, |entry| entry.log_id.index + 1);
                }
                Job::Truncate { keep, .. } => self.next = self.next.min(*keep),
                Job::Purge { upto } => {
                    self.next = self.next.max(upto.index + 1);
                    self.purged = self.purged.max(upto.index + 1);
                }
                Job::Vote { .. } | Job::Empty { .. } | Job::Stop => {}
            }
        }
    }
}

/// Works as a task, in a simulation; ends when the log is stopped.
pub(super) async fn run_as_task(shared: &Shared, files: &dyn Files) {
    loop {
        shared.wake_task.notified().await;
        loop {
            tokio::time::sleep(files.latency()).await;
            let mut task = shared.task.lock();
            let Some((writer, queue)) = &mut *task else { return };
            match writer.step(shared, queue, None) {
                Step::Done => {}
                Step::Nothing => break,
                Step::Stopped => return,
            }
        }
    }
}

/// The next job; none where there is something to tidy up meanwhile.
fn receive(queue: &Receiver<Job>, untidy: bool) -> Result<Option<Job>, ()> {
    if !untidy {
        return queue.recv().map(Some).map_err(|_| ());
    }
    match queue.recv_timeout(Duration::from_millis(20)) {
        Ok(job) => Ok(Some(job)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(()),
    }
}

/// Takes whatever waits and may share a transaction.
fn gather(queue: &Receiver<Job>, jobs: &mut Vec<Job>) {
    let mut entries = 0;
    loop {
        match jobs.last() {
            // A truncation and what follows it are written one after the other.
            Some(Job::Truncate { .. } | Job::Stop) => return,
            Some(Job::Append { entries: some, .. }) => entries += some.len(),
            _ => {}
        }
        if entries >= MOST_ENTRIES {
            return;
        }
        match queue.try_recv() {
            Ok(job) => jobs.push(job),
            Err(_) => return,
        }
    }
}

fn batch(jobs: &[Job]) -> Batch<'_> {
    let mut batch = Batch::default();
    for job in jobs {
        match job {
            Job::Append { entries, .. } => batch.entries.extend(entries),
            Job::Vote { vote, .. } => batch.vote = Some(vote),
            Job::Truncate { keep, .. } => {
                batch.entries.retain(|entry| entry.log_id.index < *keep);
                batch.truncate = Some(*keep);
            }
            Job::Purge { upto } => batch.purged = Some(upto),
            Job::Empty { .. } | Job::Stop => {}
        }
    }
    batch
}

/// After a failed write nothing more is written.
fn poisoned<T>(shared: &Shared, written: Result<T, String>) -> Result<T, String> {
    if let Err(error) = &written {
        tracing::error!(%error, "writing the raft log failed; the store stops");
        let _ = shared.poisoned.set(format!("writing the raft log failed: {error}"));
    }
    written
}

impl Job {
    fn entries(&self) -> &[Entry] {
        match self {
            Self::Append { entries, .. } => entries,
            _ => &[],
        }
    }

    fn finish(self, result: &Result<(), String>) {
        let result = result.clone().map_err(io::Error::other);
        match self {
            Self::Append { callback, .. } => callback.io_completed(result),
            Self::Vote { done, .. } | Self::Truncate { done, .. } | Self::Empty { done } => {
                drop(done.send(result));
            }
            Self::Purge { .. } | Self::Stop => {}
        }
    }
}
