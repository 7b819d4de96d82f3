//! Counts and latencies of calls, in the Prometheus text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Most series that are kept; what comes later is counted under `other`.
const MAX_SERIES: usize = 4096;

/// By verb and code, then by resource.
type Requests = BTreeMap<(&'static str, u16), BTreeMap<String, Series>>;

/// Counters of one server.
#[derive(Default)]
pub struct Metrics {
    requests: RwLock<Requests>,
    watches: AtomicI64,
}

#[derive(Default)]
struct Series {
    count: AtomicU64,
    micros: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
}

impl Series {
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

fn each(requests: &Requests) -> impl Iterator<Item = (&'static str, u16, &str, &Series)> {
    requests.iter().flat_map(|((verb, code), resources)| {
        resources.iter().map(move |(resource, series)| (*verb, *code, resource.as_str(), series))
    })
}

/// Counts a watch for as long as it lives.
pub struct WatchGuard(std::sync::Arc<Metrics>);

impl Drop for WatchGuard {
    fn drop(&mut self) {
        self.0.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counts one answered call.
    pub fn observe(&self, verb: &'static str, resource: &str, code: u16, took: Duration) {
        if let Some(series) = self.requests.read().get(&(verb, code)).and_then(|r| r.get(resource)) {
            return series.observe(took);
        }
        let mut requests = self.requests.write();
        let full = requests.values().map(BTreeMap::len).sum::<usize>() >= MAX_SERIES;
        let (verb, resource, code) = if full { ("other", "", 0) } else { (verb, resource, code) };
        requests.entry((verb, code)).or_default().entry(resource.to_owned()).or_default().observe(took);
    }

    /// Counts a watch until the guard is dropped.
    pub fn watch(self: &std::sync::Arc<Self>) -> WatchGuard {
        self.watches.fetch_add(1, Ordering::Relaxed);
        WatchGuard(self.clone())
    }

    /// The text that a scraper reads.
    pub fn render(&self) -> String {
        let mut out = String::new();
        out.push_str("# HELP apiserver_request_total Calls answered, by verb, resource and code.\n# TYPE apiserver_request_total counter\n");
        let requests = self.requests.read();
        for (verb, code, resource, series) in each(&requests) {
            let n = series.count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {n}"
            );
        }
        out.push_str("# HELP apiserver_request_duration_seconds Time to the head of the answer.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (verb, code, resource, series) in each(&requests) {
            let labels = format!("verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"");
            let mut sum = 0;
            for (bound, bucket) in BUCKETS.iter().zip(&series.buckets) {
                sum += bucket.load(Ordering::Relaxed);
                let _ = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {sum}"
                );
            }
            let n = series.count.load(Ordering::Relaxed);
            let seconds = series.micros.load(Ordering::Relaxed) as f64 / 1e6;
            let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {n}");
            let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{{labels}}} {seconds}");
            let _ = writeln!(out, "apiserver_request_duration_seconds_count{{{labels}}} {n}");
        }
        let _ = writeln!(
            out,
            "# HELP apiserver_longrunning_requests Watches that are open.\n# TYPE apiserver_longrunning_requests gauge\napiserver_longrunning_requests{{verb=\"watch\"}} {}",
            self.watches.load(Ordering::Relaxed)
        );
        out
    }
}
