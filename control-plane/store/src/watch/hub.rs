//! The hub hands each event to the topics whose prefix its key has; the watchers of a prefix share a topic.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::mvcc::HOT_EVENTS;
use crate::{Error, Event};

/// All topics.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    topics: Mutex<Topics>,
    published: AtomicU64,
    stopped: Mutex<Option<String>>,
    /// Wakes who waits for a revision.
    pub moved: Notify,
    /// Whether news do not come in because this member has lost touch with the majority.
    pub adrift: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Topics {
    by_prefix: BTreeMap<Bytes, Arc<Topic>>,
    next_id: u64,
    /// Events published since the last sweep.
    unswept: usize,
}

/// The newest events under one prefix, and who waits for more.
#[derive(Debug)]
pub(crate) struct Topic {
    pub prefix: Bytes,
    queue: Mutex<Queue>,
}

#[derive(Debug)]
struct Queue {
    /// Every event after this revision (up to the published one) is in `events`.
    start: u64,
    events: VecDeque<Arc<Event>>,
    waiting: HashMap<u64, Waker>,
    /// How far each watcher is.
    positions: HashMap<u64, Arc<AtomicU64>>,
}

/// What a topic holds for a watcher.
pub(super) enum Pending {
    /// Events up to this revision were taken.
    Taken(u64),
    /// The watcher is up to date with this revision and will be woken.
    Nothing(u64),
    /// The watcher is further behind than the topic reaches; this revision is published.
    Behind(u64),
}

impl Hub {
    /// Starts at a revision: nothing before it will be published.
    pub fn reset(&self, revision: u64) {
        let topics = self.topics.lock();
        for topic in topics.by_prefix.values() {
            let mut queue = topic.queue.lock();
            queue.events.clear();
            queue.start = queue.start.max(revision);
        }
        self.published.store(revision, Ordering::Release);
        for topic in topics.by_prefix.values() {
            topic.wake();
        }
        self.moved.notify_waiters();
    }

    /// The last revision that has reached every topic.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Acquire)
    }

    /// How many watchers there are, and by how many revisions the slowest is behind the newest event of its topic.
    pub fn lag(&self) -> (usize, u64) {
        let topics = self.topics.lock();
        let (mut watchers, mut most) = (0, 0);
        for topic in topics.by_prefix.values() {
            let queue = topic.queue.lock();
            watchers += queue.positions.len();
            let newest = queue.events.back().map_or(queue.start, |event| event.revision);
            let slowest = queue.positions.values().map(|at| at.load(Ordering::Relaxed)).min();
            most = most.max(slowest.map_or(0, |slowest| newest.saturating_sub(slowest)));
        }
        (watchers, most)
    }

    /// Joins the topic of a prefix; the id is the watcher's own.
    pub fn join(&self, prefix: Bytes, position: &Arc<AtomicU64>) -> (Arc<Topic>, u64) {
        let mut topics = self.topics.lock();
        topics.next_id += 1;
        let id = topics.next_id;
        let start = self.published();
        let topic = topics.by_prefix.entry(prefix).or_insert_with_key(|prefix| {
            let queue =
                Queue { start, events: VecDeque::new(), waiting: HashMap::new(), positions: HashMap::new() };
            Arc::new(Topic { prefix: prefix.clone(), queue: Mutex::new(queue) })
        });
        topic.queue.lock().positions.insert(id, position.clone());
        (topic.clone(), id)
    }

    /// Leaves a topic; the last one out removes it.
    pub fn leave(&self, topic: &Arc<Topic>, id: u64) {
        let mut topics = self.topics.lock();
        let mut queue = topic.queue.lock();
        queue.waiting.remove(&id);
        queue.positions.remove(&id);
        if queue.positions.is_empty() {
            drop(queue);
            topics.by_prefix.remove(&topic.prefix);
        }
    }

    /// Hands out `events`, after which everything up to `revision` is published. Events up to `cooled` may be
    /// let go of.
    pub fn publish(&self, events: &[Arc<Event>], revision: u64, cooled: u64) {
        let mut topics = self.topics.lock();
        let mut touched: Vec<Arc<Topic>> = Vec::new();
        for event in events {
            each_prefix(&topics.by_prefix, &event.kv.key, |topic| {
                topic.push(event.clone());
                if !touched.iter().any(|t| Arc::ptr_eq(t, topic)) {
                    touched.push(topic.clone());
                }
            });
        }
        self.published.store(revision, Ordering::Release);
        topics.unswept += events.len();
        if topics.unswept >= HOT_EVENTS {
            topics.unswept = 0;
            topics.by_prefix.values().for_each(|topic| topic.let_go(cooled));
        }
        drop(topics);
        touched.iter().for_each(|topic| topic.wake());
        self.moved.notify_waiters();
    }

    /// Ends all watches.
    pub fn stop(&self, reason: &str) {
        self.stopped.lock().get_or_insert_with(|| reason.to_owned());
        self.topics.lock().by_prefix.values().for_each(|topic| topic.wake());
        self.moved.notify_waiters();
    }

    /// An error once the hub was stopped.
    pub fn check(&self) -> Result<(), Error> {
        match &*self.stopped.lock() {
            None => Ok(()),
            Some(reason) => Err(Error::Stopped(reason.clone())),
        }
    }
}

impl Topic {
    fn push(&self, event: Arc<Event>) {
        let mut queue = self.queue.lock();
        queue.events.push_back(event);
        while queue.events.len() > HOT_EVENTS {
            // Whole revisions: a watcher between two events of one revision would miss the second.
            let Some(first) = queue.events.front().map(|event| event.revision) else { break };
            queue.let_go(first);
        }
    }

    fn let_go(&self, revision: u64) {
        self.queue.lock().let_go(revision);
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut self.queue.lock().waiting);
        waiting.into_values().for_each(Waker::wake);
    }

    /// Moves events after `position` to `out`, whole revisions, at least `most` where there are as many.
    pub(super) fn take(
        &self,
        position: u64,
        most: usize,
        id: u64,
        waker: Option<&Waker>,
        hub: &Hub,
        out: &mut VecDeque<Arc<Event>>,
    ) -> Pending {
        let mut queue = self.queue.lock();
        // Read under the lock: who publishes more wakes this topic afterwards. Later events may be incomplete.
        let published = hub.published();
        if position < queue.start {
            return Pending::Behind(published);
        }
        let from = queue.events.partition_point(|event| event.revision <= position);
        if queue.events.get(from).is_none_or(|event| event.revision > published) {
            if let Some(waker) = waker {
                queue.waiting.insert(id, waker.clone());
            }
            return Pending::Nothing(published);
        }
        let mut last = position;
        for event in queue.events.range(from..) {
            if event.revision > published || (event.revision != last && out.len() >= most) {
                break;
            }
            last = event.revision;
            out.push_back(event.clone());
        }
        Pending::Taken(last)
    }
}

impl Queue {
    fn let_go(&mut self, revision: u64) {
        while self.events.pop_front_if(|event| event.revision <= revision).is_some() {
            self.start = self.start.max(revision);
        }
    }
}

/// Calls `found` for every topic whose prefix `key` has, in a few lookups however many topics there are.
fn each_prefix(topics: &BTreeMap<Bytes, Arc<Topic>>, key: &[u8], mut found: impl FnMut(&Arc<Topic>)) {
    let mut bound = key;
    loop {
        let below = (Bound::Unbounded, Bound::Included(bound));
        let Some((prefix, topic)) = topics.range::<[u8], _>(below).next_back() else { return };
        let common = prefix.iter().zip(key).take_while(|(a, b)| a == b).count();
        let next = if common == prefix.len() {
            found(topic);
            common.checked_sub(1)
        } else {
            // No prefix of the key that is longer than what they share lies below `bound`.
            Some(common)
        };
        match next.and_then(|len| key.get(..len)) {
            Some(shorter) => bound = shorter,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_prefix_of_a_key() {
        let hub = Hub::default();
        let prefixes = ["", "/", "/a", "/a/", "/a/b", "/a/bb", "/a/b/c", "/a/c", "/b", "/A"];
        let topics: Vec<_> =
            prefixes.iter().map(|p| hub.join(Bytes::from_static(p.as_bytes()), &Arc::default())).collect();
        for key in ["/a/b/c", "/a/b", "/a/bbb", "/a/d", "/c", "x", "/a/b/", "/"] {
            let mut found = Vec::new();
            each_prefix(&hub.topics.lock().by_prefix, key.as_bytes(), |topic| {
                found.push(topic.prefix.clone())
            });
            found.sort();
            let mut expected: Vec<_> = prefixes.iter().filter(|p| key.starts_with(**p)).collect();
            expected.sort();
            assert_eq!(
                found,
                expected.iter().map(|p| Bytes::from(p.as_bytes())).collect::<Vec<_>>(),
                "{key}"
            );
        }
        for (topic, id) in &topics {
            hub.leave(topic, *id);
        }
        assert!(hub.topics.lock().by_prefix.is_empty());
    }
}
