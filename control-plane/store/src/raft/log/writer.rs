//! The log's thread.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use openraft::storage::IOFlushed;
use tokio::sync::oneshot;

use super::database::Batch;
use super::{Entry, LogId, Shared, Types, Vote};
use crate::disk::{Files, guarded};

/// What the thread is asked to do, in this order.
pub(super) enum Job {
    Append { entries: Vec<Entry>, callback: IOFlushed<Types> },
    Vote { vote: Vote, done: oneshot::Sender<io::Result<()>> },
    Truncate { keep: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: LogId },
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
}

impl Writer {
    pub fn new(shared: &Shared, leftover: Option<u64>) -> Self {
        let purged = shared.tail.read().purged.map_or(0, |id| id.index + 1);
        Self { scratch: Vec::new(), purged, removed: leftover.unwrap_or(purged), jobs: Vec::new() }
    }

    /// Works as a thread.
    pub fn run(mut self, shared: &Shared, queue: &Receiver<Job>) {
        loop {
            let Ok(first) = receive(queue, self.is_untidy()) else { return };
            if let Step::Stopped = self.step(shared, queue, first) {
                return;
            }
        }
    }

    /// Whether there is something to remove.
    fn is_untidy(&self) -> bool {
        self.removed < self.purged
    }

    /// Does a job and what waits behind it, in one transaction.
    pub fn step(&mut self, shared: &Shared, queue: &Receiver<Job>, first: Option<Job>) -> Step {
        self.jobs.extend(first);
        gather(queue, &mut self.jobs);
        let stop = matches!(self.jobs.last(), Some(Job::Stop));
        let mut batch = batch(&self.jobs);
        if let Some(upto) = batch.purged {
            self.purged = self.purged.max(upto.index + 1);
        }
        if self.removed < self.purged {
            let to = self.purged.min(self.removed.saturating_add(REMOVE));
            batch.remove = Some((self.removed, to));
            self.removed = to;
        }
        let idle = self.jobs.iter().all(|job| matches!(job, Job::Stop)) && batch.remove.is_none();
        let result = if idle { Ok(()) } else { write(shared, &batch, &mut self.scratch) };
        if result.is_ok()
            && let Some(last) = batch.entries.last().map(|entry| entry.log_id.index)
        {
            let mut tail = shared.tail.write();
            tail.written = last;
            tail.shrink();
        }
        drop(batch);
        self.jobs.drain(..).for_each(|job| job.finish(&result));
        match (stop, idle) {
            (true, _) => Step::Stopped,
            (false, true) => Step::Nothing,
            (false, false) => Step::Done,
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
            Job::Stop => {}
        }
    }
    batch
}

fn write(shared: &Shared, batch: &Batch<'_>, scratch: &mut Vec<u8>) -> Result<(), String> {
    if let Some(reason) = shared.poisoned.get() {
        return Err(reason.clone());
    }
    let written = guarded(|| shared.database.commit(batch, scratch));
    let written = written.and_then(|result| result.map_err(|error| error.to_string()));
    if let Err(error) = &written {
        tracing::error!(%error, "writing the raft log failed; the store stops");
        let _ = shared.poisoned.set(format!("writing the raft log failed: {error}"));
    }
    written
}

impl Job {
    fn finish(self, result: &Result<(), String>) {
        let result = result.clone().map_err(io::Error::other);
        match self {
            Self::Append { callback, .. } => callback.io_completed(result),
            Self::Vote { done, .. } | Self::Truncate { done, .. } => drop(done.send(result)),
            Self::Purge { .. } | Self::Stop => {}
        }
    }
}
