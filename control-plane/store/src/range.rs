//! Reads of many keys.

use std::sync::Arc;

use bytes::Bytes;

use crate::KeyValue;

/// The keys from `start` up to, not including, `end`.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// First key.
    pub start: Bytes,
    /// The key after the last one; `None`: no upper bound.
    pub end: Option<Bytes>,
    /// Most keys to return; 0: all.
    pub limit: usize,
    /// The state at this revision; `None`: the current one.
    pub revision: Option<u64>,
}

impl Range {
    /// All keys that begin with `prefix`; all keys at all where it is empty.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = prefix_end(&start);
        Self { start, end, ..Self::default() }
    }

    /// Goes on after `key` (the last one of the page before).
    pub fn after(mut self, key: &[u8]) -> Self {
        let mut start = Vec::with_capacity(key.len() + 1);
        start.extend_from_slice(key);
        start.push(0);
        self.start = start.into();
        self
    }

    /// At most `limit` keys; 0: all.
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// The state at `revision`.
    pub fn at(mut self, revision: u64) -> Self {
        self.revision = Some(revision);
        self
    }
}

/// The smallest key that is larger than every key with this prefix.
fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|b| *b != 0xff)?;
    let mut end = prefix.get(..=last)?.to_vec();
    if let Some(byte) = end.last_mut() {
        *byte += 1;
    }
    Some(end.into())
}

/// The answer to a [`Range`].
#[derive(Clone, Debug, Default)]
pub struct RangeResponse {
    /// The keys found, in order.
    pub kvs: Vec<Arc<KeyValue>>,
    /// Whether `limit` left some out.
    pub more: bool,
    /// How many keys the range holds, those left out included.
    pub count: u64,
    /// The revision of the state that was read.
    pub revision: u64,
}
