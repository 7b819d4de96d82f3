//! Sets of completion indexes, as a Job's status writes them: `1,3-5`.

use std::collections::BTreeSet;

use crate::view::{COMPLETION_INDEX, Meta, Pod};

/// The widest range that is read.
const WIDEST: i64 = 1_000_000;

/// Reads `1,3-5`; indexes from `end` on and what cannot be read are left out.
pub fn read(text: &str, end: i64) -> BTreeSet<i64> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>())
            && last.saturating_sub(first) < WIDEST
        {
            all.extend(first..=last.min(end.saturating_sub(1)));
        }
    }
    all
}

/// Writes `1,3-5`.
pub fn write(indexes: &BTreeSet<i64>) -> String {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let words = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(",")
}

/// The completion index of a pod.
pub fn of(pod: &Pod) -> Option<i64> {
    pod.annotation(COMPLETION_INDEX)?.parse().ok().filter(|i| *i >= 0)
}
