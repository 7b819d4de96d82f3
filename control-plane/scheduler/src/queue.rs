//! When a pod is tried: active pods by priority and age; the others wait for a change that may help or for their back-off.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::view::PodView;

/// A pod that no change woke is tried again after this long.
const FLUSH: Duration = Duration::from_secs(300);

/// Pods without a node.
pub struct Queue {
    first_delay: Duration,
    longest_delay: Duration,
    pods: HashMap<String, Waiting>,
    /// Highest priority first, then the oldest.
    active: BTreeSet<(i32, i64, String)>,
    /// When pods are tried again, the soonest first.
    timed: BTreeSet<(Instant, String)>,
    /// Pods that sleep, by the changes that may help; there are few such sets.
    asleep: BTreeMap<u32, BTreeSet<String>>,
}

struct Waiting {
    pod: PodView,
    attempts: u32,
    /// Not before, even when something changes.
    not_before: Instant,
    /// At the latest; it is in `timed` then.
    again: Option<Instant>,
    /// The changes that may help; see [`crate::wake`].
    wakes: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(10))
    }
}

impl Queue {
    /// An empty queue, with the pause after a first failed attempt and the longest one.
    pub fn new(first_delay: Duration, longest_delay: Duration) -> Self {
        let (pods, active, timed, asleep) = Default::default();
        Self { first_delay, longest_delay, pods, active, timed, asleep }
    }

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
        self.pods.insert(key, Waiting { pod, attempts, not_before: now, again: None, wakes: 0 });
    }

    /// A pod whose binding failed: tried again after its back-off, without waiting for a change.
    pub fn retry(&mut self, pod: PodView, now: Instant) {
        let key = pod.key();
        self.push(pod, now);
        if let Some(waiting) = self.pods.get(&key) {
            self.active.remove(&order(&waiting.pod));
        }
        self.sleep(&key, now, 0);
        if let Some(at) = self.pods.get(&key).map(|waiting| waiting.not_before) {
            self.set_time(&key, at);
        }
    }

    /// The pod is bound, deleted or no longer ours.
    pub fn remove(&mut self, key: &str) {
        self.stir(key);
        if let Some(waiting) = self.pods.remove(key) {
            self.active.remove(&order(&waiting.pod));
            if let Some(at) = waiting.again {
                self.timed.remove(&(at, key.to_owned()));
            }
        }
    }

    /// Every pod that waits, as `namespace/name`.
    pub fn keys(&self) -> impl Iterator<Item = &String> {
        self.pods.keys()
    }

    /// A pod that waits.
    pub fn get(&self, key: &str) -> Option<&PodView> {
        self.pods.get(key).map(|waiting| &waiting.pod)
    }

    /// The next pod to try; it stays in the queue until it is removed or put to sleep.
    pub fn pop(&mut self) -> Option<PodView> {
        let (_, _, key) = self.active.pop_first()?;
        self.pods.get(&key).map(|waiting| waiting.pod.clone())
    }

    /// A pod that waits, out of its turn; it stays in the queue as after [`Self::pop`].
    pub fn take(&mut self, key: &str) -> Option<PodView> {
        let waiting = self.pods.get(key)?;
        self.active.remove(&order(&waiting.pod));
        Some(waiting.pod.clone())
    }

    // It sleeps no longer.
    fn stir(&mut self, key: &str) {
        let wakes = self.pods.get(key).map_or(0, |waiting| waiting.wakes);
        if let Some(keys) = self.asleep.get_mut(&wakes) {
            keys.remove(key);
            if keys.is_empty() {
                self.asleep.remove(&wakes);
            }
        }
    }

    fn fall_asleep(&mut self, key: &str, wakes: u32) {
        self.stir(key);
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.wakes = wakes;
            self.asleep.entry(wakes).or_default().insert(key.to_owned());
        }
    }

    fn set_time(&mut self, key: &str, at: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        if let Some(old) = waiting.again.replace(at) {
            self.timed.remove(&(old, key.to_owned()));
        }
        self.timed.insert((at, key.to_owned()));
    }

    /// No node would take it; only these changes may help.
    pub fn sleep(&mut self, key: &str, now: Instant, wakes: u32) {
        let Some(attempts) = self.pods.get(key).map(|waiting| waiting.attempts + 1) else { return };
        let not_before = now + self.pause(attempts);
        let Some(waiting) = self.pods.get_mut(key) else { return };
        (waiting.attempts, waiting.not_before) = (attempts, not_before);
        self.set_time(key, now + FLUSH);
        self.fall_asleep(key, wakes);
    }

    /// Something changed: pods that it may help are tried again once their back-off is over.
    pub fn wake(&mut self, now: Instant, change: u32) {
        self.wake_if(now, change, |_| true);
    }

    /// Something changed that may help some pods: they are tried again once their back-off is over.
    pub fn wake_if(&mut self, now: Instant, change: u32, is: impl Fn(&PodView) -> bool) {
        let keys = self.asleep.iter().filter(|(wakes, _)| *wakes & change != 0).flat_map(|(_, keys)| keys);
        let waiting = keys.filter_map(|key| Some((key, self.pods.get(key)?)));
        let helped = waiting.filter(|(_, waiting)| is(&waiting.pod));
        let helped: Vec<(String, Instant)> =
            helped.map(|(key, waiting)| (key.clone(), waiting.not_before.max(now))).collect();
        for (key, at) in helped {
            self.stir(&key);
            self.set_time(&key, at);
        }
    }

    /// Pods by name are tried again once their back-off is over.
    pub fn wake_all<'a>(&mut self, now: Instant, keys: impl Iterator<Item = &'a String>) {
        for key in keys {
            if let Some(at) = self.pods.get(key).map(|waiting| waiting.not_before.max(now)) {
                self.stir(key);
                self.set_time(key, at);
            }
        }
    }

    /// The pod is tried again at this time and not before; that is no failure.
    pub fn rest(&mut self, key: &str, until: Instant) {
        self.stir(key);
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.not_before = until;
            self.set_time(key, until);
        }
    }

    /// How long to wait after so many failures.
    pub fn pause(&self, failures: u32) -> Duration {
        let delay = self.first_delay * 2_u32.saturating_pow(failures.clamp(1, 16) - 1);
        delay.min(self.longest_delay)
    }

    /// The pod waits for one of these changes; that is no failure.
    pub fn park(&mut self, key: &str, now: Instant, wakes: u32) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.not_before = now;
            self.set_time(key, now + FLUSH);
            self.fall_asleep(key, wakes);
        }
    }

    /// Moves pods whose time has come; returns when the next one's comes.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, key)) = self.timed.first().cloned() {
            if at > now {
                return Some(at);
            }
            self.timed.pop_first();
            self.stir(&key);
            if let Some(waiting) = self.pods.get_mut(&key) {
                waiting.again = None;
                self.active.insert(order(&waiting.pod));
            }
        }
        None
    }
}

fn order(pod: &PodView) -> (i32, i64, String) {
    (pod.priority.saturating_neg(), pod.created, pod.key())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake;

    const FIRST_DELAY: Duration = Duration::from_secs(1);

    fn pod(name: &str, priority: i32, created: i64) -> PodView {
        PodView { name: name.into(), priority, created, ..PodView::default() }
    }

    #[test]
    fn what_looks_the_same_sleeps_on_and_what_changed_is_tried() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.push(pod("a", 0, 1), now);
        assert!(queue.pop().is_some());
        queue.sleep("/a", now, wake::ANYTHING);
        queue.push(pod("a", 0, 1), now);
        assert!(queue.pop().is_none(), "our own explanation is no change");
        let changed = PodView { node_selector: [("disk".into(), "ssd".into())].into(), ..pod("a", 0, 1) };
        queue.push(changed.clone(), now);
        assert_eq!(queue.pop(), Some(changed));
        assert_eq!(queue.tick(now + FLUSH), None, "it sleeps no more");
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
        queue.sleep("/old", now, wake::ANYTHING);
        queue.wake(now, wake::POD_GONE);
        assert_eq!(queue.tick(now), Some(now + FIRST_DELAY));
        assert!(queue.pop().is_none());
        queue.tick(now + FIRST_DELAY);
        assert_eq!(queue.pop().map(|pod| pod.name).as_deref(), Some("old"));
    }

    #[test]
    fn a_change_wakes_only_whom_it_may_help() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, wakes) in [("full", wake::POD_GONE | wake::NODE_ROOM), ("tainted", wake::NODE_TAINTS)] {
            queue.push(pod(name, 0, 1), now);
            queue.pop();
            queue.sleep(&format!("/{name}"), now, wakes);
        }
        let later = now + FIRST_DELAY * 2;
        queue.wake(later, wake::NODE_TAINTS);
        queue.tick(later);
        assert_eq!(queue.pop().map(|pod| pod.name).as_deref(), Some("tainted"));
        assert!(queue.pop().is_none());
        queue.wake_if(later, wake::POD_GONE, |pod| pod.name == "other");
        assert_eq!(queue.tick(later), Some(now + FLUSH), "the full one sleeps on");
    }
}
