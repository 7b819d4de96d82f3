//! Keys with their values, and the events that changes of them make.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Value;

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Sent", into = "Sent")]
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
    /// The lease that it ends with.
    pub lease: Option<u64>,
}

/// A version as members send it to each other.
#[derive(Serialize, Deserialize)]
struct Sent {
    key: Bytes,
    value: Value,
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    ends: Ends,
}

/// When a key ends by itself. The first two are what version 1 said with an `Option`.
#[derive(Serialize, Deserialize)]
enum Ends {
    Never,
    At(i64),
    WithLease(u64),
}

impl From<Sent> for KeyValue {
    fn from(sent: Sent) -> Self {
        let Sent { key, value, create_revision, mod_revision, version, ends } = sent;
        let (expires_at, lease) = match ends {
            Ends::Never => (None, None),
            Ends::At(at) => (Some(at), None),
            Ends::WithLease(lease) => (None, Some(lease)),
        };
        Self { key, value, create_revision, mod_revision, version, expires_at, lease }
    }
}

impl From<KeyValue> for Sent {
    fn from(kv: KeyValue) -> Self {
        let KeyValue { key, value, create_revision, mod_revision, version, expires_at, lease } = kv;
        let ends = match (expires_at, lease) {
            (_, Some(lease)) => Ends::WithLease(lease),
            (Some(at), None) => Ends::At(at),
            (None, None) => Ends::Never,
        };
        Self { key, value, create_revision, mod_revision, version, ends }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What members of version 1 send.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        key: Bytes,
        value: Value,
        create_revision: u64,
        mod_revision: u64,
        version: u64,
        expires_at: Option<i64>,
    }

    #[test]
    fn versions_without_lease_are_sent_as_version_1_sent_them() {
        for expires_at in [None, Some(0), Some(-7), Some(i64::MAX)] {
            let one = One {
                key: "/k".into(),
                value: Value::raw("{}"),
                create_revision: 3,
                mod_revision: 300,
                version: 70_000,
                expires_at,
            };
            let bytes = postcard::to_stdvec(&one).unwrap();
            let read: KeyValue = postcard::from_bytes(&bytes).unwrap();
            assert_eq!((read.expires_at, read.lease, read.mod_revision), (expires_at, None, 300));
            assert_eq!(postcard::to_stdvec(&read).unwrap(), bytes);
            let leased = KeyValue { expires_at: None, lease: Some(9), ..read };
            let bytes = postcard::to_stdvec(&leased).unwrap();
            assert_eq!(postcard::from_bytes::<KeyValue>(&bytes).unwrap(), leased);
            assert!(
                postcard::from_bytes::<One>(&bytes).is_err(),
                "version 1 cannot take it for something else"
            );
        }
    }
}
