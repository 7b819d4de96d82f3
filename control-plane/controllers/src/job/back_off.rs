//! The pause before a failed pod's successor: 10 s, doubling with each failure up to ten minutes. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::view::{Meta, Pod};

const FIRST_PAUSE: i64 = 10_000;
const LONGEST_PAUSE: i64 = 600_000;

/// What is remembered of a Job's pods, those that are gone included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackOff {
    /// Failures since the last success.
    pub failures: u32,
    /// When the last pod failed.
    pub last: Option<Timestamp>,
}

/// When a pod ended.
pub fn ended_at(pod: &Pod, now: Timestamp) -> Timestamp {
    pod.finished_at().or(pod.created()).unwrap_or(now)
}

impl BackOff {
    /// Takes note of pods that ended.
    pub fn after(mut self, ended: &[&Arc<Pod>], now: Timestamp) -> Self {
        let mut ends: Vec<(Timestamp, bool)> =
            ended.iter().map(|p| (ended_at(p, now), p.phase() == "Succeeded")).collect();
        ends.sort();
        for (at, succeeded) in ends {
            if succeeded {
                self = Self::default();
            } else {
                self = Self { failures: self.failures.saturating_add(1), last: self.last.max(Some(at)) };
            }
        }
        self
    }

    /// How long a new pod must still wait.
    pub fn left(&self, now: Timestamp) -> Option<Duration> {
        left(self.failures, self.last?, now)
    }
}

/// How long to wait after so many failures, the last of them at a time.
pub fn left(failures: u32, last: Timestamp, now: Timestamp) -> Option<Duration> {
    let power = failures.checked_sub(1)?.min(10);
    let pause = FIRST_PAUSE.saturating_mul(2_i64.saturating_pow(power)).min(LONGEST_PAUSE);
    let left = last.as_millisecond() + pause - now.as_millisecond();
    u64::try_from(left).ok().filter(|l| *l > 0).map(Duration::from_millis)
}
