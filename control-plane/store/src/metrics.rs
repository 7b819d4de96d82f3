//! What a scraper reads of the store, in the Prometheus text format.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 10] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// Counters of one member.
#[derive(Default)]
pub(crate) struct Stats {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
    failed: AtomicU64,
    leader_changes: AtomicU64,
}

/// What is known besides the counters.
pub(crate) struct Facts {
    pub revision: u64,
    pub compacted: u64,
    pub members: usize,
    pub has_leader: bool,
    pub is_leader: bool,
    pub term: u64,
}

impl Stats {
    /// Counts a write, from its proposal until it was synced by a majority and applied here.
    pub fn wrote(&self, took: Duration, well: bool) {
        if !well {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound);
        if let Some(bucket) = bucket.and_then(|at| self.buckets.get(at)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts that another member leads now.
    pub fn led_by_another(&self) {
        self.leader_changes.fetch_add(1, Ordering::Relaxed);
    }

    /// The text.
    pub fn render(&self, facts: &Facts) -> String {
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing to a string does not fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        one("coracle_store_revision", "gauge", "The last applied revision.", facts.revision);
        one(
            "coracle_store_compacted_revision",
            "gauge",
            "Reads and watches reach back to here.",
            facts.compacted,
        );
        one("coracle_store_members", "gauge", "Members of the cluster.", facts.members as u64);
        one(
            "coracle_store_has_leader",
            "gauge",
            "Whether this member knows a leader.",
            facts.has_leader.into(),
        );
        one("coracle_store_is_leader", "gauge", "Whether this member leads.", facts.is_leader.into());
        one("coracle_store_term", "gauge", "Raft's term.", facts.term);
        one(
            "coracle_store_leader_changes_total",
            "counter",
            "How often this member saw another leader.",
            load(&self.leader_changes),
        );
        one("coracle_store_failed_writes_total", "counter", "Writes that were not done.", load(&self.failed));
        let name = "coracle_store_write_duration_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Writes, until a majority has synced them and they are applied here."
        );
        let _ = writeln!(out, "# TYPE {name} histogram");
        let mut sum = 0;
        for (bound, bucket) in BUCKETS.iter().zip(&self.buckets) {
            sum += load(bucket);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}");
        }
        let (count, seconds) = (load(&self.count), load(&self.micros) as f64 / 1e6);
        let _ =
            writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_adds_up() {
        let stats = Stats::default();
        for millis in [0, 2, 2, 30, 60_000] {
            stats.wrote(Duration::from_millis(millis), true);
        }
        stats.wrote(Duration::from_secs(1), false);
        let facts =
            Facts { revision: 7, compacted: 1, members: 3, has_leader: true, is_leader: false, term: 2 };
        let text = stats.render(&facts);
        for line in [
            "coracle_store_revision 7",
            "coracle_store_failed_writes_total 1",
            "coracle_store_write_duration_seconds_bucket{le=\"0.0025\"} 3",
            "coracle_store_write_duration_seconds_bucket{le=\"5\"} 4",
            "coracle_store_write_duration_seconds_bucket{le=\"+Inf\"} 5",
            "coracle_store_write_duration_seconds_count 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
