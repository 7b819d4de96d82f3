//! The recent past of a revision: its mean concurrency, second by second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Longest past that is kept, an hour and a little.
const KEPT: usize = 3700;

/// Seconds, oldest first.
#[derive(Debug, Default)]
pub struct Window {
    seconds: VecDeque<(Instant, f64)>,
    /// Request-seconds that came since the last tick.
    gathering: f64,
    /// When panic began, while it lasts.
    pub panic_since: Option<Instant>,
    /// The most pods that panic asked for.
    pub panic_pods: i32,
}

impl Window {
    /// Takes up request-seconds of one gateway.
    pub fn add(&mut self, request_seconds: f64) {
        self.gathering += request_seconds;
    }

    /// Ends a second.
    pub fn tick(&mut self, now: Instant) {
        self.seconds.push_back((now, std::mem::take(&mut self.gathering)));
        if self.seconds.len() > KEPT {
            self.seconds.pop_front();
        }
    }

    /// The mean concurrency of the last seconds; None without any.
    pub fn mean(&self, length: Duration, now: Instant) -> Option<f64> {
        let recent = self.seconds.iter().rev().take_while(|(at, _)| now.duration_since(*at) < length);
        let (count, sum) = recent.fold((0_u32, 0.0), |(count, sum), (_, mean)| (count + 1, sum + mean));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Whether it has been watched for this long.
    pub fn spans(&self, length: Duration, now: Instant) -> bool {
        self.seconds.front().is_some_and(|(at, _)| now.duration_since(*at) + Duration::from_secs(1) >= length)
    }
}
