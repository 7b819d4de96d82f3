//! When a pod is tried: active pods by priority and age; the others wait for a change or for their back-off.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::view::PodView;

const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
/// A pod that no change woke is tried again after this long.
const FLUSH: Duration = Duration::from_secs(60);

/// Pods without a node.
#[derive(Default)]
pub struct Queue {
    pods: HashMap<String, Waiting>,
    /// Highest priority first, then the oldest.
    active: BTreeSet<(i32, i64, String)>,
}

struct Waiting {
    pod: PodView,
    attempts: u32,
    /// Not before, even when something changes.
    not_before: Instant,
    /// At the latest.
    again: Option<Instant>,
}

impl Queue {
    /// A pod that waits came or changed; one that changed is tried at once, one that looks the same sleeps on.
    pub fn push(&mut self, pod: PodView, now: Instant) {
        let key = pod.key();
        let before = self.pods.get(&key);
        if before.is_some_and(|before| before.pod == pod) {
            return;
        }
        let attempts = before.filter(|before| before.pod.uid == pod.uid).map_or(0, |before| before.attempts);
        self.remove(&key);
        self.active.insert(order(&pod));
        self.pods.insert(key, Waiting { pod, attempts, not_before: now, again: None });
    }

    /// A pod whose binding failed: tried again after its back-off, without waiting for a change.
    pub fn retry(&mut self, pod: PodView, now: Instant) {
        let key = pod.key();
        self.push(pod, now);
        if let Some(waiting) = self.pods.get(&key) {
            self.active.remove(&order(&waiting.pod));
        }
        self.sleep(&key, now);
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.again = Some(waiting.not_before);
        }
    }

    /// The pod is bound, deleted or no longer ours.
    pub fn remove(&mut self, key: &str) {
        if let Some(waiting) = self.pods.remove(key) {
            self.active.remove(&order(&waiting.pod));
        }
    }

    /// Every pod that waits, as `namespace/name`.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.pods.keys()
    }

    /// The next pod to try; it stays in the queue until it is removed or put to sleep.
    pub fn pop(&mut self) -> Option<PodView> {
        let (_, _, key) = self.active.pop_first()?;
        self.pods.get(&key).map(|waiting| waiting.pod.clone())
    }

    /// No node would take it.
    pub fn sleep(&mut self, key: &str, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.attempts += 1;
            let delay = FIRST_DELAY * 2_u32.saturating_pow(waiting.attempts.min(5) - 1);
            waiting.not_before = now + delay.min(LONGEST_DELAY);
            waiting.again = Some(now + FLUSH);
        }
    }

    /// Something changed that may help: pods are tried again once their back-off is over.
    pub fn wake(&mut self, now: Instant) {
        for waiting in self.pods.values_mut().filter(|waiting| waiting.again.is_some()) {
            waiting.again = Some(waiting.not_before.max(now));
        }
    }

    /// Something changed that may help some pods: they are tried again once their back-off is over.
    pub fn wake_if(&mut self, now: Instant, is: impl Fn(&PodView) -> bool) {
        let asleep = self.pods.values_mut().filter(|waiting| waiting.again.is_some());
        for waiting in asleep.filter(|waiting| is(&waiting.pod)) {
            waiting.again = Some(waiting.not_before.max(now));
        }
    }

    /// The pod waits for something that will wake it; that is no failure.
    pub fn park(&mut self, key: &str, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.not_before = now;
            waiting.again = Some(now + FLUSH);
        }
    }

    /// Moves pods whose time has come; returns when the next one's comes.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for waiting in self.pods.values_mut() {
            match waiting.again {
                Some(at) if at <= now => {
                    waiting.again = None;
                    self.active.insert(order(&waiting.pod));
                }
                Some(at) => next = Some(next.map_or(at, |soonest| soonest.min(at))),
                None => {}
            }
        }
        next
    }
}

fn order(pod: &PodView) -> (i32, i64, String) {
    (pod.priority.saturating_neg(), pod.created, pod.key())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32, created: i64) -> PodView {
        PodView { name: name.into(), priority, created, ..PodView::default() }
    }

    #[test]
    fn what_looks_the_same_sleeps_on_and_what_changed_is_tried() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(pod("a", 0, 1), now);
        assert!(queue.pop().is_some());
        queue.sleep("/a", now);
        queue.push(pod("a", 0, 1), now);
        assert!(queue.pop().is_none(), "our own explanation is no change");
        let changed = PodView { node_selector: [("disk".into(), "ssd".into())].into(), ..pod("a", 0, 1) };
        queue.push(changed.clone(), now);
        assert_eq!(queue.pop(), Some(changed));
    }

    #[test]
    fn by_priority_then_age_and_back_off_after_a_failure() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for one in [pod("young", 0, 9), pod("old", 0, 1), pod("urgent", 5, 9)] {
            queue.push(one, now);
        }
        let names: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|pod| pod.name).collect();
        assert_eq!(names, ["urgent", "old", "young"]);
        queue.sleep("/old", now);
        queue.wake(now);
        assert_eq!(queue.tick(now), Some(now + FIRST_DELAY));
        assert!(queue.pop().is_none());
        queue.tick(now + FIRST_DELAY);
        assert_eq!(queue.pop().map(|pod| pod.name).as_deref(), Some("old"));
    }
}
