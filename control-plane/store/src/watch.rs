//! Watching: every change under a prefix after a revision, in order, none missing and none twice.
//!
//! A [`Watch`] knows the revision up to which it has seen everything. New events reach it through the topic of its
//! prefix, which holds the newest ones only; when it is further behind it reads the window of the state instead, and
//! when it is behind that too it ends with [`Error::Compacted`]. So a slow watcher costs a bounded amount of memory.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::Stream;

use crate::machine::Machine;
use crate::{Error, Event};

mod hub;

pub(crate) use hub::Hub;
use hub::{Pending, Topic};

/// Events taken over in one go.
const BATCH: usize = 256;

/// A stream of events; see [`Store::watch`](crate::Store::watch).
pub struct Watch {
    machine: Arc<Machine>,
    topic: Arc<Topic>,
    id: u64,
    /// Every event up to this revision was delivered or is in `buffer`.
    position: u64,
    /// The same, for whoever wants to know how far watchers are.
    told: Arc<AtomicU64>,
    buffer: VecDeque<Arc<Event>>,
}

impl Watch {
    pub(crate) fn new(machine: Arc<Machine>, prefix: bytes::Bytes, after: u64) -> Self {
        let told = Arc::new(AtomicU64::new(after));
        let (topic, id) = machine.hub.join(prefix, &told);
        Self { machine, topic, id, position: after, told, buffer: VecDeque::new() }
    }

    #[cfg(test)]
    pub(crate) fn for_test(machine: &Arc<Machine>, prefix: &'static str, after: u64) -> Self {
        Self::new(machine.clone(), prefix.into(), after)
    }

    /// The next event; waits for it.
    ///
    /// # Errors
    /// [`Error::Compacted`] when the watcher was so slow that the window moved past it, [`Error::Stopped`] when the
    /// store stops.
    pub async fn next(&mut self) -> Result<Arc<Event>, Error> {
        std::future::poll_fn(|cx| self.poll_event(cx)).await
    }

    /// The next event if there is one already.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, Error> {
        self.fill(None)?;
        Ok(self.buffer.pop_front())
    }

    /// A revision up to which every event has been delivered; never decreases. This is what a bookmark tells.
    pub fn progress_revision(&mut self) -> u64 {
        if self.buffer.is_empty() {
            // An error shows again at the next read.
            let _ = self.fill(None);
        }
        match self.buffer.front() {
            Some(event) => event.revision.saturating_sub(1).min(self.position),
            None => self.position,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<Event>, Error>> {
        if let Err(error) = self.fill(Some(cx)) {
            return Poll::Ready(Err(error));
        }
        self.buffer.pop_front().map_or(Poll::Pending, |event| Poll::Ready(Ok(event)))
    }

    /// Makes the buffer non-empty, or registers to be woken.
    fn fill(&mut self, cx: Option<&mut Context<'_>>) -> Result<(), Error> {
        let waker = cx.map(|cx| cx.waker());
        while self.buffer.is_empty() {
            let hub = &self.machine.hub;
            match self.topic.take(self.position, BATCH, self.id, waker, hub, &mut self.buffer) {
                Pending::Taken(position) => self.position = position,
                Pending::Nothing(published) => {
                    self.position = self.position.max(published);
                    self.told.store(self.position, Ordering::Relaxed);
                    return hub.check();
                }
                Pending::Behind(published) => {
                    let state = self.machine.state.read();
                    let prefix = &self.topic.prefix;
                    self.position =
                        state.events_after(prefix, self.position, published, BATCH, &mut self.buffer)?;
                }
            }
            self.told.store(self.position, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Stream for Watch {
    type Item = Result<Arc<Event>, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_event(cx).map(Some)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.machine.hub.leave(&self.topic, self.id);
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let prefix = String::from_utf8_lossy(&self.topic.prefix);
        f.debug_struct("Watch").field("prefix", &prefix).field("position", &self.position).finish()
    }
}
