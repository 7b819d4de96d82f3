//! Latencies and their percentiles.

use std::time::Duration;

/// Latencies of one measurement, in any order.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<Duration>);

impl Samples {
    pub fn add(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The nearest-rank percentile: the smallest sample that at least `percent` of all samples do not exceed. `percent` is
    /// 1 to 100; none without samples.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100);
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(millis: impl IntoIterator<Item = u64>) -> Samples {
        Samples(millis.into_iter().map(Duration::from_millis).collect())
    }

    #[test]
    fn percentiles_are_samples_by_nearest_rank() {
        for (all, percent, expected) in [
            (samples([7]), 50, Some(7)),
            (samples([7]), 99, Some(7)),
            (samples([2, 1]), 50, Some(1)),
            (samples([3, 1, 2]), 50, Some(2)),
            (samples((1..=100).rev()), 50, Some(50)),
            (samples((1..=100).rev()), 99, Some(99)),
            (samples(1..=100), 100, Some(100)),
            (samples(1..=101), 99, Some(100)),
            (samples(1..=50), 99, Some(50)),
            (samples([]), 99, None),
        ] {
            assert_eq!(all.percentile(percent), expected.map(Duration::from_millis), "{all:?} p{percent}");
        }
    }

    #[test]
    fn samples_of_several_clients_are_one_set() {
        let mut all = samples([1, 2]);
        all.extend(samples([3]));
        all.add(Duration::from_millis(4));
        assert_eq!((all.len(), all.percentile(100)), (4, Some(Duration::from_millis(4))));
    }
}
