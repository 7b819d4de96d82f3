//! What a scraper reads of the store, in the Prometheus text format.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Alarm;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 10] = [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// How long something took, how often.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    pub fn add(&self, took: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        let bucket = BUCKETS.iter().position(|bound| seconds <= *bound);
        if let Some(bucket) = bucket.and_then(|at| self.buckets.get(at)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn render(&self, out: &mut String, name: &str, help: &str) -> fmt::Result {
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram")?;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut sum = 0;
        for (bound, bucket) in BUCKETS.iter().zip(&self.buckets) {
            sum += load(bucket);
            writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {sum}")?;
        }
        let (count, seconds) = (load(&self.count), load(&self.micros) as f64 / 1e6);
        writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {seconds}\n{name}_count {count}")
    }
}

/// Counters of one member.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    writes: Histogram,
    failed: AtomicU64,
    leader_changes: AtomicU64,
    /// Transactions of the log and of the state, until they were synced.
    pub log_syncs: Histogram,
    pub state_syncs: Histogram,
    pub slow_syncs: AtomicU64,
    /// Connections of whoever is no member.
    pub strangers: AtomicU64,
}

/// What is known besides the counters.
#[derive(Default)]
pub(crate) struct Facts {
    pub revision: u64,
    pub compacted: u64,
    pub members: usize,
    pub has_leader: bool,
    pub is_leader: bool,
    pub term: u64,
    pub state_bytes: u64,
    pub log_bytes: u64,
    pub watchers: usize,
    /// By how many revisions the slowest watcher is behind what it could have seen.
    pub watch_lag: u64,
    pub alarms: Vec<Alarm>,
}

impl Stats {
    /// Counts a write, from its proposal until it was synced by a majority and applied here.
    pub fn wrote(&self, took: Duration, well: bool) {
        match well {
            true => self.writes.add(took),
            false => drop(self.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Counts that another member leads now.
    pub fn led_by_another(&self) {
        self.leader_changes.fetch_add(1, Ordering::Relaxed);
    }

    /// The text.
    pub fn render(&self, facts: &Facts) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(facts, &mut out);
        out
    }

    fn write(&self, facts: &Facts, out: &mut String) -> fmt::Result {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (gauge, counter) = ("gauge", "counter");
        let (members, watchers) = (facts.members as u64, facts.watchers as u64);
        let rows: [(&str, &str, &str, u64); 14] = [
            ("revision", gauge, "The last applied revision.", facts.revision),
            ("compacted_revision", gauge, "Reads and watches reach back to here.", facts.compacted),
            ("members", gauge, "Members of the cluster.", members),
            ("has_leader", gauge, "Whether this member knows a leader.", facts.has_leader.into()),
            ("is_leader", gauge, "Whether this member leads.", facts.is_leader.into()),
            ("term", gauge, "Raft's term.", facts.term),
            ("state_bytes", gauge, "Bytes of the file that holds the keys.", facts.state_bytes),
            ("log_bytes", gauge, "Bytes of the files that hold raft's log.", facts.log_bytes),
            ("watchers", gauge, "Watches that are open.", watchers),
            ("watch_lag_revisions", gauge, "How far the slowest watcher is behind.", facts.watch_lag),
            (
                "leader_changes_total",
                counter,
                "How often this member saw another leader.",
                load(&self.leader_changes),
            ),
            ("failed_writes_total", counter, "Writes that were not done.", load(&self.failed)),
            (
                "slow_syncs_total",
                counter,
                "Syncs of the disk that took more than a second.",
                load(&self.slow_syncs),
            ),
            (
                "refused_members_total",
                counter,
                "Connections refused, for whoever made them is no member.",
                load(&self.strangers),
            ),
        ];
        for (name, kind, help, value) in rows {
            let name = format!("coracle_store_{name}");
            writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}")?;
        }
        writeln!(out, "# HELP coracle_store_alarm What is wrong.\n# TYPE coracle_store_alarm gauge")?;
        for alarm in &facts.alarms {
            writeln!(out, "coracle_store_alarm{{type=\"{}\"}} {}", alarm.name, u8::from(alarm.on))?;
        }
        let help = "Writes, until a majority has synced them and they are applied here.";
        self.writes.render(out, "coracle_store_write_duration_seconds", help)?;
        let help = "Transactions of raft's log, until they are synced.";
        self.log_syncs.render(out, "coracle_store_log_sync_duration_seconds", help)?;
        let help = "Transactions of the keys' file, until they are synced.";
        self.state_syncs.render(out, "coracle_store_state_sync_duration_seconds", help)
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
        stats.log_syncs.add(Duration::from_millis(2));
        let facts =
            Facts { revision: 7, compacted: 1, members: 3, has_leader: true, term: 2, ..Facts::default() };
        let text = stats.render(&facts);
        for line in [
            "coracle_store_revision 7",
            "coracle_store_failed_writes_total 1",
            "coracle_store_write_duration_seconds_bucket{le=\"0.0025\"} 3",
            "coracle_store_write_duration_seconds_bucket{le=\"5\"} 4",
            "coracle_store_write_duration_seconds_bucket{le=\"+Inf\"} 5",
            "coracle_store_write_duration_seconds_count 5",
            "coracle_store_log_sync_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
