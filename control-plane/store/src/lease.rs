//! Leases: who leads counts their time, and ends those whose time has come.
//!
//! Nothing of that time is written down. A member that comes to lead, after an election or a restart, gives every lease its whole
//! time to live again, as etcd does: a lease may live longer than promised, never shorter.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::machine::Machine;
use crate::mvcc::Granted;

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
    /// By the leases' ids.
    of: HashMap<u64, Time>,
}

/// The time of one lease.
#[derive(Debug)]
struct Time {
    /// The number of the lease: an id may be granted again, and that is another lease.
    number: u64,
    end: Instant,
    /// It is about to be revoked: it cannot be kept alive any more.
    ending: bool,
}

impl Times {
    /// Begins anew where another term has begun.
    fn begin(&mut self, term: u64) {
        if self.term != term {
            *self = Self { term, ..Self::default() };
        }
    }

    /// The time of a lease; it begins where nobody has asked for it yet.
    fn of(&mut self, id: u64, granted: Granted, now: Instant) -> &mut Time {
        let Granted { number, ttl_ms } = granted;
        let begun = || Time { number, end: now + Duration::from_millis(ttl_ms), ending: false };
        let time = self.of.entry(id).or_insert_with(begun);
        if time.number != number {
            *time = begun();
        }
        time
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
        // Held until the end, so that it is of the lease that is there now.
        let state = self.machine.state.read();
        let granted = state.granted(id)?;
        let now = Instant::now();
        let mut times = self.times.lock();
        times.begin(term);
        let time = times.of(id, granted, now);
        if time.ending {
            return None;
        }
        if renew {
            time.end = now + Duration::from_millis(granted.ttl_ms);
        }
        let remaining = time.end.saturating_duration_since(now);
        Some((granted.ttl_ms, u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Leases whose time has come, so many at most, those among them whose end is under way already, by their ids.
    pub fn due(&self, term: u64, most: usize) -> Vec<u64> {
        let state = self.machine.state.read();
        let now = Instant::now();
        let mut times = self.times.lock();
        times.begin(term);
        times.of.retain(|id, _| state.granted(*id).is_some());
        let over = state.leases().filter(|(id, granted)| times.of(*id, *granted, now).end <= now);
        over.map(|(id, _)| id).take(most).collect()
    }

    /// A lease is about to be revoked, and not kept alive from now on; false: its time has not come any more.
    pub fn end(&self, id: u64, term: u64) -> bool {
        let state = self.machine.state.read();
        let Some(granted) = state.granted(id) else { return false };
        let now = Instant::now();
        let mut times = self.times.lock();
        if times.term != term {
            return false;
        }
        let time = times.of(id, granted, now);
        time.ending |= time.end <= now;
        time.ending
    }

    /// It was surely not revoked.
    pub fn spare(&self, id: u64) {
        if let Some(time) = self.times.lock().of.get_mut(&id) {
            time.ending = false;
        }
    }
}
