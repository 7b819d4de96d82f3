//! How long requests take until the head of their response: counts that a histogram is made of.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::protocol::{LATENCY_BOUNDS_MS, Latency};

/// Counted without a lock.
#[derive(Default)]
pub(crate) struct Latencies {
    counts: [AtomicU64; LATENCY_BOUNDS_MS.len() + 1],
    sum_micros: AtomicU64,
}

impl Latencies {
    /// Counts one request.
    pub fn count(&self, took: Duration) {
        let bucket = LATENCY_BOUNDS_MS.partition_point(|bound| Duration::from_millis(*bound) < took);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Latency {
        Latency {
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum_micros: self.sum_micros.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_falls_into_the_first_bucket_that_holds_it() {
        let latencies = Latencies::default();
        for micros in [0, 1000, 1001, 10_000_000, 10_000_001] {
            latencies.count(Duration::from_micros(micros));
        }
        let read = latencies.read();
        let last = LATENCY_BOUNDS_MS.len();
        let filled: Vec<_> = read.counts.iter().enumerate().filter(|(_, n)| **n > 0).collect();
        assert_eq!(filled, [(0, &2), (1, &1), (last - 1, &1), (last, &1)]);
        assert_eq!(read.sum_micros, 20_002_002);
    }
}
