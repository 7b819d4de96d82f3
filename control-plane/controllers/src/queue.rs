//! A work queue: a key is in it at most once, is worked on by at most one worker, and comes back after a growing pause
//! when its work failed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Key;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct State {
    ready: VecDeque<Key>,
    /// Keys that wait for a worker, and keys that changed while a worker has them.
    dirty: HashSet<Key>,
    working: HashSet<Key>,
    failures: HashMap<Key, u32>,
    later: BinaryHeap<Reverse<(Instant, Key)>>,
    /// When each key of `later` is due; other entries of the heap for it are stale.
    due: HashMap<Key, Instant>,
}

/// Keys to work on.
#[derive(Default)]
pub struct WorkQueue {
    state: Mutex<State>,
    changed: Notify,
}

impl WorkQueue {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks for work on a key, now.
    pub fn add(&self, key: impl Into<Key>) {
        let wake = self.state.lock().add(key.into());
        if wake {
            self.changed.notify_one();
        }
    }

    /// Asks for work on a key after a pause; the earliest request for a key counts.
    pub fn add_after(&self, key: impl Into<Key>, pause: Duration) {
        let (key, at) = (key.into(), Instant::now() + pause);
        {
            let state = &mut *self.state.lock();
            if state.due.get(&key).is_some_and(|due| *due <= at) {
                return;
            }
            state.due.insert(key.clone(), at);
            state.later.push(Reverse((at, key)));
        }
        self.changed.notify_one();
    }

    /// The next key. The caller owns it until [`WorkQueue::done`] or [`WorkQueue::failed`].
    pub async fn next(&self) -> Key {
        loop {
            let changed = self.changed.notified();
            let pause = {
                let state = &mut *self.state.lock();
                state.wake(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.later.peek().map(|Reverse((at, _))| *at)
            };
            match pause {
                Some(at) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// The work on a key succeeded.
    pub fn done(&self, key: &Key) {
        self.state.lock().failures.remove(key);
        self.finish(key);
    }

    /// The work on a key failed: it comes back later. Returns how often it has failed in a row.
    pub fn failed(&self, key: &Key) -> u32 {
        let failures = {
            let state = &mut *self.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            *failures
        };
        self.add_after(key.clone(), pause(failures));
        self.finish(key);
        failures
    }

    fn finish(&self, key: &Key) {
        let again = {
            let state = &mut *self.state.lock();
            state.working.remove(key);
            let again = state.dirty.contains(key);
            if again {
                state.ready.push_back(key.clone());
            }
            again
        };
        if again {
            self.changed.notify_one();
        }
    }
}

/// 5 ms, doubling with each failure up to a minute.
pub fn pause(failures: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(20))).min(LONGEST_PAUSE)
}

impl State {
    // Whether a worker has something to do now.
    fn add(&mut self, key: Key) -> bool {
        if !self.dirty.insert(key.clone()) || self.working.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn wake(&mut self, now: Instant) {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, key))) = self.later.pop() else { return };
            if self.due.get(&key) == Some(&at) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }

    fn take(&mut self) -> Option<Key> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_is_queued_once_and_worked_on_by_one() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        let a = queue.next().await;
        assert_eq!(&*a, "a");
        queue.add("a");
        let b = queue.next().await;
        assert_eq!(&*b, "b");
        assert!(tokio::time::timeout(Duration::from_millis(20), queue.next()).await.is_err());
        queue.done(&a);
        assert_eq!(&*queue.next().await, "a");
    }

    #[tokio::test]
    async fn failures_come_back_later_and_later() {
        let queue = WorkQueue::new();
        queue.add("a");
        let start = Instant::now();
        for _ in 0..4 {
            let key = queue.next().await;
            queue.failed(&key);
        }
        queue.next().await;
        assert!(start.elapsed() >= Duration::from_millis(5 + 10 + 20 + 40), "{:?}", start.elapsed());
        assert_eq!(pause(40), LONGEST_PAUSE);
    }
}
