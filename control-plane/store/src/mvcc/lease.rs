//! Leases: keys that end together. When a lease ends is not known here: whoever leads counts its time, and ends it.

use super::*;
use crate::TxnResponse;

/// Most leases at a time.
pub(crate) const MAX_LEASES: usize = 100_000;

/// A lease and the keys that end with it.
#[derive(Debug)]
pub(super) struct Lease {
    granted: Granted,
    pub keys: BTreeSet<Bytes>,
}

/// What was granted under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Of all leases that were in this memory no two have the same, those of one id neither. Other members count otherwise.
    pub number: u64,
    /// Its time to live, in milliseconds.
    pub ttl_ms: u64,
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

    /// All leases, in order of their ids.
    pub fn leases(&self) -> impl Iterator<Item = (u64, Granted)> {
        self.leases.iter().map(|(id, lease)| (*id, lease.granted))
    }

    /// What was granted under an id and has not ended.
    pub fn granted(&self, id: u64) -> Option<Granted> {
        self.leases.get(&id).map(|lease| lease.granted)
    }

    /// The keys of a lease, in order.
    pub fn lease_keys(&self, id: u64) -> Option<Vec<Bytes>> {
        self.leases.get(&id).map(|lease| lease.keys.iter().cloned().collect())
    }

    /// Takes a lease from disk, before the rows of its keys.
    pub fn restore_lease(&mut self, id: u64, ttl_ms: u64) {
        self.raise(2);
        self.leases_granted += 1;
        let granted = Granted { number: self.leases_granted, ttl_ms };
        self.leases.insert(id, Lease { granted, keys: BTreeSet::new() });
    }

    pub(super) fn has_lease(&self, id: u64) -> bool {
        self.leases.contains_key(&id)
    }

    pub(super) fn grant(&mut self, id: u64, ttl_ms: u64, effects: &mut Effects) -> TxnResponse {
        self.raise(2);
        let succeeded = self.leases.len() < MAX_LEASES && !self.has_lease(id);
        if succeeded {
            self.restore_lease(id, ttl_ms);
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
