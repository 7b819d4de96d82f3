//! Commands applied to the state.

use super::*;
use crate::{Compare, OpResult, TxnResponse, Value};

impl Mvcc {
    /// Runs one command. Never fails: a command was checked before it was proposed.
    pub fn apply(&mut self, command: &Command, effects: &mut Effects) -> Option<TxnResponse> {
        let response = match command {
            Command::Txn { now_ms, txn } => Some(self.txn(*now_ms, txn, effects)),
            Command::Expire { keys } => {
                for (key, revision) in keys {
                    self.expire(key, *revision, effects);
                }
                None
            }
            Command::Compact { revision } => {
                self.compact((*revision).min(self.revision), effects);
                None
            }
            Command::Grant { id, ttl_ms } => Some(self.grant(*id, *ttl_ms, effects)),
            Command::Revoke { id } => Some(self.revoke(*id, effects)),
        };
        self.trim(effects);
        response
    }

    /// A transaction without writes, which needs no command.
    pub fn read(&self, txn: &Txn) -> TxnResponse {
        let succeeded = self.holds(&txn.compares);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let results = ops.iter().map(|op| OpResult::Get(self.get(op.key()).cloned())).collect();
        TxnResponse { succeeded, revision: self.revision, results }
    }

    fn holds(&self, compares: &[Compare]) -> bool {
        compares.iter().all(|compare| match compare {
            Compare::Absent(key) => self.get(key).is_none(),
            Compare::Exists(key) => self.get(key).is_some(),
            Compare::ModRevision(key, revision) => {
                self.get(key).is_some_and(|kv| kv.mod_revision == *revision)
            }
        })
    }

    fn txn(&mut self, now_ms: i64, txn: &Txn, effects: &mut Effects) -> TxnResponse {
        let succeeded = self.holds(&txn.compares);
        let ops = if succeeded { &txn.success } else { &txn.failure };
        let unknown = |op: &Op| match op {
            Op::PutLeased { lease, .. } if !self.has_lease(*lease) => Some(*lease),
            _ => None,
        };
        if let Some(lease) = ops.iter().find_map(unknown) {
            let results = vec![OpResult::NoLease(lease)];
            return TxnResponse { succeeded: false, revision: self.revision, results };
        }
        let next = self.revision + 1;
        let mut results = Vec::with_capacity(ops.len());
        for op in ops {
            results.push(match op {
                Op::Get { key } => OpResult::Get(self.get(key).cloned()),
                Op::Delete { key } => OpResult::Deleted { prev: self.delete(key, next, effects) },
                Op::Put { key, value, ttl_ms } => {
                    let ttl = ttl_ms.map(|ttl| now_ms.saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX)));
                    self.set_key(next, key, value, (ttl, None), effects)
                }
                Op::PutLeased { key, value, lease } => {
                    self.set_key(next, key, value, (None, Some(*lease)), effects)
                }
            });
        }
        TxnResponse { succeeded, revision: self.revision, results }
    }

    fn set_key(
        &mut self,
        revision: u64,
        key: &Bytes,
        value: &Value,
        (expires_at, lease): (Option<i64>, Option<u64>),
        effects: &mut Effects,
    ) -> OpResult {
        let prev = self.get(key).cloned();
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision: prev.as_ref().map_or(revision, |prev| prev.create_revision),
            mod_revision: revision,
            version: prev.as_ref().map_or(1, |prev| prev.version + 1),
            expires_at,
            lease,
        };
        self.put(Arc::new(kv), prev.clone(), effects);
        OpResult::Put { prev }
    }

    fn expire(&mut self, key: &Bytes, revision: u64, effects: &mut Effects) {
        if self.get(key).is_some_and(|kv| kv.mod_revision == revision) {
            self.delete(key, self.revision + 1, effects);
        }
    }

    fn put(&mut self, kv: Arc<KeyValue>, prev: Option<Arc<KeyValue>>, effects: &mut Effects) {
        self.revision = kv.mod_revision;
        effects.changes.push(Change::Put(kv.clone()));
        let event = Arc::new(Event::put(kv.clone(), prev));
        self.set(kv.key.clone(), kv.mod_revision, Some(kv));
        self.record(event, effects);
    }

    pub(super) fn delete(
        &mut self,
        key: &Bytes,
        revision: u64,
        effects: &mut Effects,
    ) -> Option<Arc<KeyValue>> {
        let prev = self.get(key)?.clone();
        self.revision = revision;
        effects.changes.push(Change::Tombstone { key: prev.key.clone(), revision });
        self.set(prev.key.clone(), revision, None);
        self.record(Arc::new(Event::delete(prev.clone(), revision)), effects);
        Some(prev)
    }

    /// Makes `kv` the current version of `key`, keeping the one before.
    pub(super) fn set(&mut self, key: Bytes, revision: u64, kv: Option<Arc<KeyValue>>) {
        if let Some(at) = kv.as_ref().and_then(|kv| kv.expires_at) {
            self.expiry.insert((at, key.clone()));
        }
        let lease = |kv: &Option<Arc<KeyValue>>| kv.as_ref().and_then(|kv| kv.lease);
        let had = self.keys.get(&key).and_then(|versions| lease(&versions.current));
        self.attach(&key, had, lease(&kv));
        let Some(versions) = self.keys.get_mut(&key) else {
            self.keys.insert(key, Versions { current: kv, revision, older: Vec::new() });
            return;
        };
        let current = std::mem::replace(&mut versions.current, kv);
        let changed = std::mem::replace(&mut versions.revision, revision);
        let expired = current.as_ref().and_then(|kv| kv.expires_at);
        versions.older.push((changed, current));
        let again = versions.current.as_ref().and_then(|kv| kv.expires_at);
        if let Some(at) = expired.filter(|at| again != Some(*at)) {
            self.expiry.remove(&(at, key));
        }
    }

    fn record(&mut self, event: Arc<Event>, effects: &mut Effects) {
        effects.events.push(event.clone());
        self.remember(event);
    }
}
