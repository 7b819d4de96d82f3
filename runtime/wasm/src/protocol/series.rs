//! What guests measure of themselves.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What guests measure of themselves (coracle:observe).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// By the containers' ids.
    pub series: BTreeMap<String, Vec<Series>>,
    /// Containers whose series did not fit any more.
    pub left_out: BTreeSet<String>,
}

/// What is reckoned for a series beside what is written in it, in bytes: its container's names, when it is shown.
const AROUND_SERIES: usize = 256;

impl Measured {
    /// The most of all series together, in bytes: they go in one message.
    pub const MAX_BYTES: usize = 4 << 20;

    /// Leaves out the containers that have the most, until the others fit into so many bytes.
    pub fn fit(&mut self, bytes: usize) {
        let text = |s: &Series| {
            let labels = s.labels.iter().map(|(key, value)| key.len() + value.len());
            AROUND_SERIES + s.name.len() + labels.sum::<usize>()
        };
        let size = |series: &Vec<Series>| series.iter().map(text).sum::<usize>();
        let mut sizes: Vec<_> = self.series.iter().map(|(id, series)| (size(series), id.clone())).collect();
        sizes.sort();
        let mut used = 0;
        for (size, id) in sizes {
            used += size;
            if used > bytes {
                self.series.remove(&id);
                self.left_out.insert(id);
            }
        }
    }
}

/// A measurement that a guest makes of itself (coracle:observe).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Series {
    pub name: String,
    /// Sorted by their names.
    pub labels: Vec<(String, String)>,
    pub kind: SeriesKind,
    pub value: Number,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Number {
    Whole(u64),
    /// The bits of an `f64`, which is finite.
    Fraction(u64),
}

impl From<f64> for Number {
    fn from(value: f64) -> Number {
        Number::Fraction(value.to_bits())
    }
}

/// Whether a measurement only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeriesKind {
    Counter,
    Gauge,
    /// A bucket of a histogram: a counter whose last label, `le`, is where it ends.
    Bucket,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Response;

    #[test]
    fn those_with_the_most_series_are_left_out() {
        let series = |n: usize| {
            let labels = vec![("k".repeat(64), "v".repeat(256)); 8];
            let one = Series {
                name: "n".repeat(64),
                labels,
                kind: SeriesKind::Gauge,
                value: Number::Whole(u64::MAX),
            };
            vec![one; n]
        };
        let mut measured = Measured::default();
        measured.series.extend((0..300).map(|n| (format!("full-{n}"), series(200))));
        measured.series.extend((0..300).map(|n| (format!("usual-{n}"), series(2))));
        measured.fit(Measured::MAX_BYTES);
        assert!(measured.left_out.len() > 290 && measured.left_out.iter().all(|id| id.starts_with("full-")));
        assert_eq!(measured.series.len() + measured.left_out.len(), 600);
        let frame = crate::frame::encode(&Response::Series(measured)).unwrap();
        assert!(frame.len() < Measured::MAX_BYTES, "{}", frame.len());
    }
}
