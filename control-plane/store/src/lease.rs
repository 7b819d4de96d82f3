//! Leases: who leads counts their time, and ends those whose time has come.
//!
//! Nothing of that time is written down. A member that comes to lead, after an election or a restart, gives every lease its whole
//! time to live again, as etcd does: a lease may live longer than promised, never shorter.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::machine::Machine;

/// A lease as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id.
    pub id: u64,
    /// What it was granted for, and what each keep-alive gives it again.
    pub ttl: Duration,
    /// What is left of that.
    pub remaining: Duration,
    /// The keys that end with it, in order.
    pub keys: Vec<Bytes>,
}

/// Counts the time of leases while this member leads.
#[derive(Debug)]
pub(crate) struct Lessor {
    machine: Arc<Machine>,
    times: Mutex<Times>,
}

#[derive(Debug, Default)]
struct Times {
    /// The term that is counted for.
    term: u64,
    ends: HashMap<u64, Instant>,
    /// Those that are about to be revoked: they cannot be kept alive any more.
    ending: HashSet<u64>,
}

impl Times {
    /// Begins anew where another term has begun.
    fn begin(&mut self, term: u64) {
        if self.term != term {
            *self = Self { term, ..Self::default() };
        }
    }
}

impl Lessor {
    pub fn new(machine: Arc<Machine>) -> Self {
        Self { machine, times: Mutex::default() }
    }

    /// The version that a member has to speak to understand the state.
    pub fn version(&self) -> u64 {
        self.machine.version()
    }

    /// Time to live and what is left of it, in milliseconds, after it was given anew if asked; `None`: there is no such lease.
    pub fn look(&self, id: u64, renew: bool, term: u64) -> Option<(u64, u64)> {
        let (ttl_ms, _) = self.machine.state.read().lease(id)?;
        let (now, ttl) = (Instant::now(), Duration::from_millis(ttl_ms));
        let mut times = self.times.lock();
        times.begin(term);
        if times.ending.contains(&id) {
            return None;
        }
        let end = times.ends.entry(id).or_insert(now + ttl);
        if renew {
            *end = now + ttl;
        }
        let remaining = end.saturating_duration_since(now);
        Some((ttl_ms, u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The leases whose time has come, those among them whose end is under way already.
    pub fn due(&self, term: u64) -> Vec<u64> {
        let leases: Vec<(u64, u64)> = self.machine.state.read().leases().collect();
        let now = Instant::now();
        let mut times = self.times.lock();
        times.begin(term);
        let there: HashSet<u64> = leases.iter().map(|(id, _)| *id).collect();
        times.ends.retain(|id, _| there.contains(id));
        times.ending.retain(|id| there.contains(id));
        let mut is_over =
            |id, ttl_ms| *times.ends.entry(id).or_insert(now + Duration::from_millis(ttl_ms)) <= now;
        leases.into_iter().filter(|(id, ttl_ms)| is_over(*id, *ttl_ms)).map(|(id, _)| id).collect()
    }

    /// A lease is about to be revoked, and not kept alive from now on; false: its time has not come any more.
    pub fn end(&self, id: u64, term: u64) -> bool {
        let mut times = self.times.lock();
        let over = times.term == term && times.ends.get(&id).is_some_and(|end| *end <= Instant::now());
        if over {
            times.ending.insert(id);
        }
        over
    }

    /// It was surely not revoked.
    pub fn spare(&self, id: u64) {
        self.times.lock().ending.remove(&id);
    }
}
