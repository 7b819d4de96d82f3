//! Transactions: compare, then write. All writes of one transaction share one revision.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, KeyValue, Value};

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 4096;
/// Most comparisons, and most operations of one branch.
pub const MAX_TXN_OPS: usize = 1024;
/// Most bytes of keys and values in one transaction.
pub const MAX_TXN_BYTES: usize = 8 << 20;

/// If all of `compares` hold then `success`, else `failure`, in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Txn {
    /// Conditions, all of which must hold.
    pub compares: Vec<Compare>,
    /// What is done when they hold.
    pub success: Vec<Op>,
    /// What is done when they do not.
    pub failure: Vec<Op>,
}

/// A condition on one key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Compare {
    /// The key does not exist.
    Absent(Bytes),
    /// The key exists and was last changed at this revision.
    ModRevision(Bytes, u64),
    /// The key exists.
    Exists(Bytes),
}

impl Compare {
    /// The key that is looked at.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Absent(key) | Self::ModRevision(key, _) | Self::Exists(key) => key,
        }
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Op {
    /// Sets a key. A key without `ttl_ms` never expires, whatever it had before.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Value,
        /// Time to live in milliseconds.
        ttl_ms: Option<u64>,
    },
    /// Deletes a key; a key that does not exist is no error and no write.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Reads a key as the operations before left it.
    Get {
        /// The key.
        key: Bytes,
    },
    /// Sets a key that ends with a lease. Without that lease the whole transaction is refused.
    PutLeased {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Value,
        /// The lease.
        lease: u64,
    },
}

impl Op {
    /// The key that is read or written.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. }
            | Self::PutLeased { key, .. }
            | Self::Delete { key }
            | Self::Get { key } => key,
        }
    }

    fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. })
    }

    /// The value that is written, with its key.
    pub(crate) fn value(&self) -> Option<(&Bytes, &Value)> {
        match self {
            Self::Put { key, value, .. } | Self::PutLeased { key, value, .. } => Some((key, value)),
            Self::Delete { .. } | Self::Get { .. } => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn value_mut(&mut self) -> Option<(&Bytes, &mut Value)> {
        match self {
            Self::Put { key, value, .. } | Self::PutLeased { key, value, .. } => Some((key, value)),
            Self::Delete { .. } | Self::Get { .. } => None,
        }
    }
}

/// What a transaction did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TxnResponse {
    /// Whether the comparisons held, so whether `success` ran.
    pub succeeded: bool,
    /// The revision of its writes; without a write, the revision that it saw.
    pub revision: u64,
    /// One result for each operation of the branch that ran.
    pub results: Vec<OpResult>,
}

/// The result of one operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum OpResult {
    /// The key was set.
    Put {
        /// The version before.
        prev: Option<Arc<KeyValue>>,
    },
    /// The key does not exist any more.
    Deleted {
        /// The version before; `None`: there was nothing to delete.
        prev: Option<Arc<KeyValue>>,
    },
    /// The key as it was read.
    Get(Option<Arc<KeyValue>>),
    /// There is no such lease, so nothing of the transaction was done.
    NoLease(u64),
}

impl Txn {
    /// Create: the key must be absent; otherwise the answer carries what is there.
    pub fn create(key: Bytes, value: Value, ttl_ms: Option<u64>) -> Self {
        Self {
            compares: vec![Compare::Absent(key.clone())],
            failure: vec![Op::Get { key: key.clone() }],
            success: vec![Op::Put { key, value, ttl_ms }],
        }
    }

    /// Update: the key must be at `revision`; otherwise the answer carries what is there.
    pub fn update(key: Bytes, revision: u64, value: Value, ttl_ms: Option<u64>) -> Self {
        Self {
            compares: vec![Compare::ModRevision(key.clone(), revision)],
            failure: vec![Op::Get { key: key.clone() }],
            success: vec![Op::Put { key, value, ttl_ms }],
        }
    }

    /// Delete: the key must be at `revision`; otherwise the answer carries what is there.
    pub fn delete(key: Bytes, revision: u64) -> Self {
        Self {
            compares: vec![Compare::ModRevision(key.clone(), revision)],
            failure: vec![Op::Get { key: key.clone() }],
            success: vec![Op::Delete { key }],
        }
    }

    /// Sets a key whatever it was.
    pub fn put(key: Bytes, value: Value) -> Self {
        Self { success: vec![Op::Put { key, value, ttl_ms: None }], ..Self::default() }
    }

    /// Whether no branch writes.
    pub(crate) fn is_read_only(&self) -> bool {
        !self.success.iter().chain(&self.failure).any(Op::is_write)
    }

    /// Whether it speaks of leases.
    pub(crate) fn names_leases(&self) -> bool {
        self.success.iter().chain(&self.failure).any(|op| matches!(op, Op::PutLeased { .. }))
    }

    /// Bytes of its keys and values.
    pub(crate) fn weight(&self) -> usize {
        let weight = |op: &Op| op.key().len() + op.value().map_or(0, |(_, value)| value.weight());
        let ops = self.success.iter().chain(&self.failure).map(weight);
        ops.sum::<usize>() + self.compares.iter().map(|c| c.key().len()).sum::<usize>()
    }

    /// Refuses what is too large, empty keys, and a key that one branch writes twice.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::Invalid(what));
        let most = self.compares.len().max(self.success.len()).max(self.failure.len());
        if most > MAX_TXN_OPS {
            return invalid(format!("transaction has {most} operations, at most {MAX_TXN_OPS} are allowed"));
        }
        let weight = self.weight();
        if weight > MAX_TXN_BYTES {
            return invalid(format!("transaction has {weight} bytes, at most {MAX_TXN_BYTES} are allowed"));
        }
        let keys = self.compares.iter().map(Compare::key);
        for key in keys.chain(self.success.iter().chain(&self.failure).map(Op::key)) {
            if key.is_empty() || key.len() > MAX_KEY_BYTES {
                return invalid(format!("key has {} bytes, 1 to {MAX_KEY_BYTES} are allowed", key.len()));
            }
        }
        for branch in [&self.success, &self.failure] {
            if branch.len() < 2 {
                continue;
            }
            let mut seen = HashSet::with_capacity(branch.len());
            if let Some(op) = branch.iter().filter(|op| op.is_write()).find(|op| !seen.insert(op.key())) {
                let key = String::from_utf8_lossy(op.key()).into_owned();
                return invalid(format!("key {key} is written twice in one transaction"));
            }
        }
        Ok(())
    }
}
