//! Counts and latencies of calls, in the Prometheus text format, under Kubernetes' names.

mod render;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

pub(crate) use render::all;

/// Upper bounds of the latency buckets, in seconds: those of Kubernetes, and finer ones below.
const BUCKETS: [f64; 26] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0,
    6.0, 8.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
/// Most series that are kept; what comes later is counted as one.
const MAX_SERIES: usize = 4096;

/// What a call was, in the words of Kubernetes' labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Labels {
    /// `GET`, `LIST`, `WATCH`, `POST`, `APPLY`, `CONNECT`, ...
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    /// Empty for paths that are no resource.
    pub resource: String,
    pub subresource: String,
    /// `resource`, `namespace`, `cluster`, or empty.
    pub scope: &'static str,
    /// `All` or empty.
    pub dry_run: &'static str,
}

/// Counters of one server.
pub struct Metrics {
    hasher: RandomState,
    requests: RwLock<HashMap<u64, Series>>,
    running: RwLock<HashMap<Labels, Arc<Running>>>,
    /// Calls that are worked on: those that read and those that write.
    in_flight: [AtomicI64; 2],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            requests: RwLock::default(),
            running: RwLock::default(),
            in_flight: Default::default(),
        }
    }
}

struct Series {
    labels: Labels,
    code: u16,
    count: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

impl Series {
    fn new(labels: Labels, code: u16) -> Self {
        Self { labels, code, count: 0.into(), micros: 0.into(), buckets: Default::default() }
    }

    fn observe(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(took.as_micros().try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        if let Some(at) = BUCKETS.iter().position(|b| seconds <= *b)
            && let Some(bucket) = self.buckets.get(at)
        {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Streams of one kind.
#[derive(Default)]
struct Running {
    now: AtomicI64,
    /// Events that its watches have sent.
    events: AtomicU64,
}

/// Counts a watch for as long as it lives, and its events.
pub(crate) struct WatchGuard(Arc<Running>);

impl WatchGuard {
    /// So many events were sent.
    pub fn sent(&self, events: u64) {
        self.0.events.fetch_add(events, Ordering::Relaxed);
    }
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a call while it is worked on.
pub(crate) struct InFlight<'a>(&'a AtomicI64);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts one answered call.
    pub(crate) fn observe(&self, labels: &Labels, code: u16, took: Duration) {
        let key = self.hasher.hash_one((labels, code));
        if let Some(series) = self.requests.read().get(&key) {
            return series.observe(took);
        }
        let mut requests = self.requests.write();
        let full = requests.len() >= MAX_SERIES;
        let (key, labels, code) = if full {
            (0, Labels { verb: "other", ..Labels::default() }, 0)
        } else {
            (key, labels.clone(), code)
        };
        requests.entry(key).or_insert_with(|| Series::new(labels, code)).observe(took);
    }

    /// Counts a watch until the guard is dropped.
    pub(crate) fn watch(&self, labels: Labels) -> WatchGuard {
        let known = self.running.read().get(&labels).cloned();
        let running = known.unwrap_or_else(|| {
            let mut all = self.running.write();
            let labels = if all.len() < MAX_SERIES { labels } else { Labels::default() };
            all.entry(labels).or_default().clone()
        });
        running.now.fetch_add(1, Ordering::Relaxed);
        WatchGuard(running)
    }

    /// Counts a call while it is worked on.
    pub(crate) fn in_flight(&self, mutating: bool) -> InFlight<'_> {
        let count = &self.in_flight[usize::from(mutating)];
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }
}
