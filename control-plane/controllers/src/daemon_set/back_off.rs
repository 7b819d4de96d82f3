//! How long a failed pod of a node stays before it is made anew: 1 s, doubling up to 15 minutes, per set and node.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::Key;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Copy, Debug)]
struct Entry {
    pause: Duration,
    since: Instant,
}

/// Failures by set and node.
#[derive(Debug, Default)]
pub struct BackOffs {
    entries: HashMap<Key, HashMap<String, Entry>>,
}

impl BackOffs {
    /// The nodes of a set whose failed pod is not replaced yet, and when the first of them is.
    pub fn waiting(&mut self, set: &str, now: Instant) -> (HashSet<String>, Option<Duration>) {
        let Some(nodes) = self.entries.get_mut(set) else { return Default::default() };
        // What has been quiet for long begins anew.
        nodes.retain(|_, entry| now.duration_since(entry.since) < 2 * LONGEST);
        let left =
            |entry: &Entry| entry.pause.checked_sub(now.duration_since(entry.since)).filter(|l| !l.is_zero());
        let all: Vec<(String, Duration)> =
            nodes.iter().filter_map(|(node, entry)| Some((node.clone(), left(entry)?))).collect();
        let first = all.iter().map(|(_, left)| *left).min();
        (all.into_iter().map(|(node, _)| node).collect(), first)
    }

    /// A failed pod of a node is replaced now: the next one waits longer.
    pub fn replaced(&mut self, set: &Key, node: &str, now: Instant) {
        let nodes = self.entries.entry(set.clone()).or_default();
        let pause = nodes.get(node).map_or(FIRST, |entry| (entry.pause * 2).min(LONGEST));
        nodes.insert(node.to_string(), Entry { pause, since: now });
    }

    /// A set is gone.
    pub fn forget(&mut self, set: &str) {
        self.entries.remove(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_pods_of_a_node_wait_longer_and_longer() {
        let (mut all, set, start) = (BackOffs::default(), Key::from("default/agent"), Instant::now());
        assert!(all.waiting(&set, start).0.is_empty(), "the first is replaced at once");
        let mut now = start;
        for seconds in [1, 2, 4] {
            all.replaced(&set, "a", now);
            let (nodes, left) = all.waiting(&set, now);
            assert_eq!((nodes.contains("a"), left), (true, Some(Duration::from_secs(seconds))));
            assert!(all.waiting("default/other", now).0.is_empty() && !nodes.contains("b"));
            now += Duration::from_secs(seconds);
            assert!(all.waiting(&set, now).0.is_empty());
        }
        for _ in 0..20 {
            all.replaced(&set, "a", now);
        }
        assert_eq!(all.waiting(&set, now).1, Some(LONGEST));
    }
}
