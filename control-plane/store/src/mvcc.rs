//! The state in memory: every key's current version, the versions inside the history window, and the window's events.
//!
//! Nothing here does I/O, knows raft, or takes a lock. Applying the same commands in the same order gives the
//! same state on every member, except for how far the window reaches back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, Event, KeyValue, Op, Txn};

mod apply;
mod history;
mod lease;
mod read;
#[cfg(test)]
mod tests;

pub(crate) use history::HOT_EVENTS;
pub(crate) use lease::{Granted, MAX_LEASES};
pub(crate) use read::Page;

/// The revision of an empty store; the first write gets the next one.
pub(crate) const FIRST_REVISION: u64 = 1;

/// One entry of the log, as the state machine sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// A transaction; `now_ms` is the proposer's clock, so that every member computes the same expiry.
    Txn { now_ms: i64, txn: Txn },
    /// Deletes these keys where they still are at these revisions, each under a revision of its own.
    Expire { keys: Vec<(Bytes, u64)> },
    /// Forgets history before a revision.
    Compact { revision: u64 },
    /// Makes a lease; where there is one of this id nothing happens. Since version 2.
    Grant { id: u64, ttl_ms: u64 },
    /// Ends a lease and deletes its keys, all under one revision. Since version 2.
    Revoke { id: u64 },
}

impl Command {
    /// The version of the members that understand it.
    pub fn version(&self) -> u64 {
        match self {
            Self::Txn { txn, .. } if txn.names_leases() => 2,
            Self::Txn { .. } | Self::Expire { .. } | Self::Compact { .. } => 1,
            Self::Grant { .. } | Self::Revoke { .. } => 2,
        }
    }
}

/// What a command did to the state on disk.
#[derive(Debug)]
pub(crate) enum Change {
    /// A new version.
    Put(Arc<KeyValue>),
    /// The key was deleted at this revision.
    Tombstone { key: Bytes, revision: u64 },
    /// This version or tombstone left the window.
    Forget { key: Bytes, revision: u64 },
    /// There is a lease of this time to live, or none of this id any more.
    Lease { id: u64, ttl_ms: Option<u64> },
}

/// How far the window reaches back: whichever bound is met first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub revisions: u64,
    pub bytes: usize,
}

/// What one batch of commands brought about.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub events: Vec<Arc<Event>>,
    pub changes: Vec<Change>,
}

/// All versions of one key that are kept.
#[derive(Debug)]
struct Versions {
    /// The newest; `None`: deleted.
    current: Option<Arc<KeyValue>>,
    revision: u64,
    /// Those before, oldest first.
    older: Vec<(u64, Option<Arc<KeyValue>>)>,
}

#[derive(Debug)]
pub(crate) struct Mvcc {
    keys: BTreeMap<Bytes, Versions>,
    revision: u64,
    /// Events after this revision are in `ring`; reads at it and later are possible.
    compacted: u64,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    expiry: BTreeSet<(i64, Bytes)>,
    leases: BTreeMap<u64, lease::Lease>,
    /// The number of the last lease.
    leases_granted: u64,
    /// The version that a member has to speak to understand what is here.
    version: u64,
    window: Window,
}

impl Mvcc {
    pub fn new(window: Window) -> Self {
        Self {
            keys: BTreeMap::new(),
            revision: FIRST_REVISION,
            compacted: 0,
            ring: VecDeque::new(),
            ring_bytes: 0,
            expiry: BTreeSet::new(),
            leases: BTreeMap::new(),
            leases_granted: 0,
            version: 1,
            window,
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn compacted(&self) -> u64 {
        self.compacted
    }

    pub fn get(&self, key: &[u8]) -> Option<&Arc<KeyValue>> {
        self.keys.get(key)?.current.as_ref()
    }

    /// Keys whose time has come, soonest first, with the revision they are at.
    pub fn expired(&self, now_ms: i64, most: usize) -> Vec<(Bytes, u64)> {
        let due = self.expiry.iter().take_while(|(at, _)| *at <= now_ms).take(most);
        due.filter_map(|(_, key)| Some((key.clone(), self.get(key)?.mod_revision))).collect()
    }
}

impl Versions {
    /// The version that was current at `revision`.
    fn at(&self, revision: u64) -> Option<&Arc<KeyValue>> {
        if self.revision <= revision {
            return self.current.as_ref();
        }
        self.older.iter().rev().find(|(r, _)| *r <= revision)?.1.as_ref()
    }
}
