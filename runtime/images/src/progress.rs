//! How far the pulls are that are under way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// How far a pull is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    pub received: u64,
    /// What its manifest says: content that was here already counts as received.
    pub total: u64,
}

/// The pulls under way, by whole name.
#[derive(Default)]
pub(crate) struct Board(Mutex<HashMap<String, Arc<Counter>>>);

struct Counter {
    received: AtomicU64,
    total: u64,
}

/// A pull's entry; dropped, it is gone.
pub(crate) struct Pulling<'a> {
    board: &'a Board,
    name: String,
    counter: Arc<Counter>,
}

impl Board {
    /// A pull of so many bytes begins.
    pub(crate) fn begin(&self, name: &str, total: u64) -> Pulling<'_> {
        let counter = Arc::new(Counter { received: AtomicU64::new(0), total });
        let mut pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulls.insert(name.to_owned(), counter.clone());
        Pulling { board: self, name: name.to_owned(), counter }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Progress> {
        let pulls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counter = pulls.get(name)?;
        let received = counter.received.load(Ordering::Relaxed).min(counter.total);
        Some(Progress { received, total: counter.total })
    }
}

impl Pulling<'_> {
    /// So many bytes more are here.
    pub(crate) fn add(&self, bytes: u64) {
        self.counter.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What came has to come again.
    pub(crate) fn take_back(&self, bytes: u64) {
        self.counter.received.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        let mut pulls = self.board.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pulls.get(&self.name).is_some_and(|c| Arc::ptr_eq(c, &self.counter)) {
            pulls.remove(&self.name);
        }
    }
}
