//! The state with its lock and its watchers: what commands are applied to and reads are served from.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::mvcc::{Command, Effects, Mvcc, Page, Window};
use crate::seal::{self, Sealer};
use crate::watch::Hub;
use crate::{Error, Range, RangeResponse, TxnResponse};

/// Keys read under one hold of the lock.
const SLICE: usize = 2048;

#[derive(Debug)]
pub(crate) struct Machine {
    pub state: RwLock<Mvcc>,
    pub hub: Hub,
    /// Who opens sealed values.
    pub sealer: Sealer,
    revision: AtomicU64,
    /// The version that a member has to speak to understand the state.
    version: AtomicU64,
}

impl Machine {
    pub fn new(window: Window, sealer: Sealer) -> Self {
        let (state, hub) = (RwLock::new(Mvcc::new(window)), Hub::default());
        let machine = Self { state, hub, sealer, revision: AtomicU64::new(0), version: AtomicU64::new(1) };
        machine.replace(Mvcc::new(window));
        machine
    }

    /// Sets a whole new state; watchers that are behind it end.
    pub fn replace(&self, state: Mvcc) {
        let revision = state.revision();
        self.version.store(state.version(), Ordering::Release);
        *self.state.write() = state;
        self.revision.store(revision, Ordering::Release);
        self.hub.reset(revision);
    }

    /// The last applied revision.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The version that a member has to speak to understand the state.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Applies commands in order under one hold of the lock, then publishes their events. Only one caller at a time.
    pub fn apply<'a>(
        &self,
        commands: impl Iterator<Item = &'a Command>,
        effects: &mut Effects,
    ) -> Vec<Option<TxnResponse>> {
        let mut state = self.state.write();
        let responses = commands.map(|command| self.apply_one(&mut state, command, effects)).collect();
        let (revision, cooled) = (state.revision(), state.hot_floor());
        self.version.store(state.version(), Ordering::Release);
        self.revision.store(revision, Ordering::Release);
        drop(state);
        if !effects.events.is_empty() {
            self.hub.publish(&effects.events, revision, cooled);
            effects.events.clear();
        }
        responses
    }

    fn apply_one(&self, state: &mut Mvcc, command: &Command, effects: &mut Effects) -> Option<TxnResponse> {
        if let Command::Txn { now_ms, txn } = command {
            match seal::open(&self.sealer, txn) {
                Ok(None) => {}
                Ok(Some(txn)) => return state.apply(&Command::Txn { now_ms: *now_ms, txn }, effects),
                // It is kept as it is, for the members must stay alike; but nobody is served by this one any more.
                Err(why) => self.hub.stop(&why),
            }
        }
        state.apply(command, effects)
    }

    /// Reads a range slice by slice, so that writes wait for no more than one of them.
    pub fn range(&self, range: &Range) -> Result<RangeResponse, Error> {
        let state = self.state.read();
        let mut page = Page::new(range, state.check_revision(range.revision)?);
        let mut done = state.read_slice(&mut page, SLICE);
        drop(state);
        while !done {
            let state = self.state.read();
            if page.revision < state.compacted() {
                if range.revision.is_some() {
                    return Err(Error::Compacted { compact_revision: state.compacted() });
                }
                // The window moved past the read: start over at one revision, in one go.
                page = Page::new(range, state.revision());
                done = state.read_slice(&mut page, usize::MAX);
            } else {
                done = state.read_slice(&mut page, SLICE);
            }
        }
        let more = page.count > page.kvs.len() as u64;
        Ok(RangeResponse { more, count: page.count, revision: page.revision, kvs: page.kvs })
    }
}
