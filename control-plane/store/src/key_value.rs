//! Keys with their values, and the events that changes of them make.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Value;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Value,
    /// Revision at which the key came into being (after its last deletion).
    pub create_revision: u64,
    /// Revision of the last change.
    pub mod_revision: u64,
    /// Number of changes since it came into being, from 1.
    pub version: u64,
    /// When the store deletes it by itself, in Unix milliseconds.
    pub expires_at: Option<i64>,
}

impl KeyValue {
    /// The value with `resourceVersion` set to `mod_revision`.
    pub fn to_json(&self) -> Bytes {
        self.value.with_revision(self.mod_revision)
    }

    /// Bytes that this version holds, roughly.
    pub(crate) fn weight(&self) -> usize {
        self.key.len() + self.value.weight() + 160
    }
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created (`version` 1) or changed.
    Put,
    /// Deleted, by a caller or because its time to live ended.
    Delete,
}

/// A change of one key.
#[derive(Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// Put: the new version. Delete: the last version, its `mod_revision` being that of the deletion.
    pub kv: Arc<KeyValue>,
    /// The version before, where there was one.
    pub prev: Option<Arc<KeyValue>>,
    /// The revision of the change.
    pub revision: u64,
    /// A slot for the reader: the watch line, encoded once and shared by its watchers. The store never fills it
    /// and lets go of it long before the event leaves the window.
    pub encoded: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn put(kv: Arc<KeyValue>, prev: Option<Arc<KeyValue>>) -> Self {
        let revision = kv.mod_revision;
        Self { kind: EventKind::Put, kv, prev, revision, encoded: OnceLock::new() }
    }

    pub(crate) fn delete(prev: Arc<KeyValue>, revision: u64) -> Self {
        let kv = Arc::new(KeyValue { mod_revision: revision, ..(*prev).clone() });
        Self { kind: EventKind::Delete, kv, prev: Some(prev), revision, encoded: OnceLock::new() }
    }

    /// The same event with an empty slot.
    pub(crate) fn stripped(&self) -> Self {
        let Self { kind, kv, prev, revision, .. } = self;
        let (kv, prev) = (kv.clone(), prev.clone());
        Self { kind: *kind, kv, prev, revision: *revision, encoded: OnceLock::new() }
    }
}
