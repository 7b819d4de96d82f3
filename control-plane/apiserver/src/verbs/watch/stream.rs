//! A running watch: the present state first where it was asked for, then what each event means to this caller.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::Status;
use coracle_store::{Event, EventKind, KeyValue, Watch};
use tokio::time::{Instant, Sleep};

use super::encoder::{Encoder, error_line};
use super::{BOOKMARK_PERIOD, watch_error};
use crate::metrics::WatchGuard;
use crate::select::Selection;

/// A running watch.
pub(super) struct State {
    pub watch: Option<Watch>,
    pub encoder: Encoder,
    pub selection: Selection,
    pub queue: VecDeque<Bytes>,
    /// The present state, as far as it was not sent.
    pub initial: VecDeque<Arc<KeyValue>>,
    /// The revision to tell at the end of it.
    pub initial_end: Option<u64>,
    /// Events up to this revision are not for this caller.
    pub skip_to: u64,
    pub bookmarks: bool,
    pub bookmarked: u64,
    pub next_bookmark: Pin<Box<Sleep>>,
    pub deadline: Pin<Box<Sleep>>,
    /// Whether this server has lost touch with the others.
    pub adrift: tokio::sync::watch::Receiver<bool>,
    pub guard: WatchGuard,
    /// Events that were sent and not yet counted.
    pub sent: u64,
}

impl State {
    /// The next line, or the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.queue.pop_front() {
                self.sent += 1;
                return Some(line);
            }
            if let Some(kv) = self.initial.pop_front() {
                self.take_initial(&kv);
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.encoder.bookmark(revision, true));
            }
            // Other tasks of this thread get their turn even if events never cease.
            tokio::task::coop::consume_budget().await;
            let shutdown = &self.encoder.target.shared.shutdown;
            let retired = &self.encoder.target.served.retired;
            if shutdown.is_cancelled() || retired.is_cancelled() || Instant::now() >= self.deadline.deadline()
            {
                return None;
            }
            let watch = self.watch.as_mut()?;
            match watch.try_next() {
                Ok(None) => self.guard.sent(std::mem::take(&mut self.sent)),
                other => {
                    self.take_result(other);
                    continue;
                }
            }
            tokio::select! {
                event = watch.next() => self.take_result(event.map(Some)),
                () = self.next_bookmark.as_mut(), if self.bookmarks => self.bookmark(),
                () = self.deadline.as_mut() => return None,
                () = shutdown.cancelled() => return None,
                () = retired.cancelled() => return None,
                // No news would come: the client goes on elsewhere from the revision that it has.
                () = async { drop(self.adrift.wait_for(|adrift| *adrift).await) } => return None,
            }
        }
    }

    fn take_result(&mut self, result: Result<Option<Arc<Event>>, coracle_store::Error>) {
        match result {
            Ok(Some(event)) => self.take(&event),
            Ok(None) => {}
            Err(error) => self.end(watch_error(error, self.bookmarked, &self.encoder.target)),
        }
    }

    fn take_initial(&mut self, kv: &KeyValue) {
        let served = self.encoder.target.served.clone();
        let line = match self.selection.matches(&served, kv) {
            Ok(true) => self.encoder.line("ADDED", kv, kv.mod_revision),
            Ok(false) => return,
            Err(status) => Err(status),
        };
        match line {
            Ok(line) => self.queue.push_back(line),
            Err(status) => {
                self.initial.clear();
                self.initial_end = None;
                self.end(status);
            }
        }
    }

    fn end(&mut self, status: Status) {
        self.queue.push_back(error_line(&status));
        self.watch = None;
    }

    fn bookmark(&mut self) {
        self.next_bookmark.as_mut().reset(Instant::now() + BOOKMARK_PERIOD);
        let Some(watch) = self.watch.as_mut() else { return };
        let revision = watch.progress_revision().max(self.skip_to);
        if revision > self.bookmarked {
            self.bookmarked = revision;
            let line = self.encoder.bookmark(revision, false);
            self.queue.push_back(line);
        }
    }

    /// Queues what an event means to this caller.
    fn take(&mut self, event: &Arc<Event>) {
        if event.revision <= self.skip_to {
            return;
        }
        match self.line(event) {
            Ok(Some(line)) => {
                self.bookmarked = event.revision;
                self.queue.push_back(line);
            }
            Ok(None) => {}
            Err(status) => self.end(status),
        }
    }

    fn line(&mut self, event: &Event) -> Result<Option<Bytes>, Status> {
        let natural = match (event.kind, &event.prev) {
            (EventKind::Delete, _) => "DELETED",
            (EventKind::Put, None) => "ADDED",
            (EventKind::Put, Some(_)) => "MODIFIED",
        };
        if self.selection.is_everything() {
            return self.encoder.event(natural, event).map(Some);
        }
        let served = self.encoder.target.served.clone();
        let is = self.selection.matches(&served, &event.kv)?;
        if event.kind == EventKind::Delete {
            return if is { self.encoder.event(natural, event).map(Some) } else { Ok(None) };
        }
        let was = match &event.prev {
            Some(prev) => self.selection.matches(&served, prev)?,
            None => false,
        };
        match (was, is, &event.prev) {
            (true, true, _) => self.encoder.event(natural, event).map(Some),
            (false, true, None) => self.encoder.event("ADDED", event).map(Some),
            (false, true, Some(_)) => self.encoder.line("ADDED", &event.kv, event.revision).map(Some),
            // The object as it was last seen, at the revision that took it away.
            (true, false, Some(prev)) => self.encoder.line("DELETED", prev, event.revision).map(Some),
            _ => Ok(None),
        }
    }
}
