//! Leases: keys that end together. When a lease ends is not known here: whoever leads counts its time, and ends it.

use super::*;
use crate::TxnResponse;

/// Most leases at a time.
pub(crate) const MAX_LEASES: usize = 100_000;

/// A lease and the keys that end with it.
#[derive(Debug)]
pub(super) struct Lease {
    pub ttl_ms: u64,
    pub keys: BTreeSet<Bytes>,
}

impl Mvcc {
    /// The version that a member has to speak to understand what is here.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// From now on only members of this version understand what is here.
    pub fn raise(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// All leases with their times to live, in milliseconds.
    pub fn leases(&self) -> impl Iterator<Item = (u64, u64)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.ttl_ms))
    }

    /// The time to live of a lease, in milliseconds, and its keys in order.
    pub fn lease(&self, id: u64) -> Option<(u64, Vec<Bytes>)> {
        let lease = self.leases.get(&id)?;
        Some((lease.ttl_ms, lease.keys.iter().cloned().collect()))
    }

    /// Takes a lease from disk, before the rows of its keys.
    pub fn restore_lease(&mut self, id: u64, ttl_ms: u64) {
        self.raise(2);
        self.leases.insert(id, Lease { ttl_ms, keys: BTreeSet::new() });
    }

    pub(super) fn has_lease(&self, id: u64) -> bool {
        self.leases.contains_key(&id)
    }

    pub(super) fn grant(&mut self, id: u64, ttl_ms: u64, effects: &mut Effects) -> TxnResponse {
        self.raise(2);
        let succeeded = self.leases.len() < MAX_LEASES && !self.has_lease(id);
        if succeeded {
            self.leases.insert(id, Lease { ttl_ms, keys: BTreeSet::new() });
            effects.changes.push(Change::Lease { id, ttl_ms: Some(ttl_ms) });
        }
        TxnResponse { succeeded, revision: self.revision, results: Vec::new() }
    }

    pub(super) fn revoke(&mut self, id: u64, effects: &mut Effects) -> TxnResponse {
        self.raise(2);
        let lease = self.leases.remove(&id);
        let succeeded = lease.is_some();
        if let Some(lease) = lease {
            effects.changes.push(Change::Lease { id, ttl_ms: None });
            let revision = self.revision + 1;
            for key in &lease.keys {
                self.delete(key, revision, effects);
            }
        }
        TxnResponse { succeeded, revision: self.revision, results: Vec::new() }
    }

    /// Moves a key from the lease that it had to the one that it has.
    pub(super) fn attach(&mut self, key: &Bytes, had: Option<u64>, has: Option<u64>) {
        if had == has {
            return;
        }
        if let Some(lease) = had.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.remove(key);
        }
        if let Some(lease) = has.and_then(|id| self.leases.get_mut(&id)) {
            lease.keys.insert(key.clone());
        }
    }
}
