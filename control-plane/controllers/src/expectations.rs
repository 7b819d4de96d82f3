//! What a controller has done and its cache has not shown yet. Until it has, counting the cache would do it again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::Key;

/// After this long a missing event is taken as lost, as in Kubernetes.
const TIMEOUT: Duration = Duration::from_secs(300);

struct Expected {
    /// Names of created objects still to be seen; counted, because an event may come before the answer that names it.
    creations: usize,
    /// Uids of objects whose deletion is still to be seen.
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations of one controller, by the key of the owner.
#[derive(Default)]
pub struct Expectations {
    by_owner: Mutex<HashMap<Key, Expected>>,
}

impl Expectations {
    /// Whether everything expected has been seen (or is overdue).
    pub fn settled(&self, owner: &str) -> bool {
        match self.by_owner.lock().get(owner) {
            None => true,
            Some(e) => (e.creations == 0 && e.deletions.is_empty()) || e.since.elapsed() > TIMEOUT,
        }
    }

    /// Expects so many more creations and deletions, before they are asked for.
    pub fn expect(&self, owner: &Key, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let mut by_owner = self.by_owner.lock();
        let new = || Expected { creations: 0, deletions: HashSet::new(), since: Instant::now() };
        let expected = by_owner.entry(owner.clone()).or_insert_with(new);
        if expected.since.elapsed() > TIMEOUT {
            *expected = new();
        }
        expected.since = Instant::now();
        expected.creations += creations;
        expected.deletions.extend(deletions);
    }

    /// So many creations were seen, or failed and will not be.
    pub fn created(&self, owner: &str, count: usize) {
        if let Some(e) = self.by_owner.lock().get_mut(owner) {
            e.creations = e.creations.saturating_sub(count);
        }
    }

    /// A deletion was seen, or failed and will not be.
    pub fn deleted(&self, owner: &str, uid: &str) {
        if let Some(e) = self.by_owner.lock().get_mut(owner) {
            e.deletions.remove(uid);
        }
    }

    /// The owner is gone.
    pub fn forget(&self, owner: &str) {
        self.by_owner.lock().remove(owner);
    }
}
