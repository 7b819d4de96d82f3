//! One decision a file. A filter says why a node cannot take a pod; a score prefers one node to another.

pub mod affinity;
pub mod inter_pod;
pub mod node_ports;
pub mod resources_fit;
pub mod spread;
pub mod taints;
pub mod unschedulable;
pub mod volumes;

use crate::cycle::{Cycle, Room};

/// Why a node cannot take a pod, in the words that users search for; several reasons may hold.
pub type Reasons = Vec<String>;

/// A filter.
pub type Filter = fn(&Cycle<'_>, &Room) -> Reasons;

/// The best score. It is finer than a percentage, so that one pod more on a large node counts.
pub const BEST: i64 = 1_000_000;

/// Scores of nodes from 0 (worst) to [`BEST`], in their order.
pub type Score = fn(&Cycle<'_>, &[&Room]) -> Vec<i64>;

/// Every filter, in Kubernetes' order: the first that refuses names the reasons. True: stopping other pods may help.
pub const FILTERS: [(Filter, bool); 8] = [
    (unschedulable::filter, false),
    (taints::filter, false),
    (affinity::filter, false),
    (node_ports::filter, true),
    (resources_fit::filter, true),
    (volumes::filter, false),
    (spread::filter, true),
    (inter_pod::filter, true),
];

/// Every score, with its weight.
pub const SCORES: [(Score, i64); 5] = [
    (resources_fit::least_allocated, 1),
    (taints::prefer_untainted, 3),
    (affinity::preferred, 2),
    (spread::prefer_spread, 2),
    (inter_pod::prefer, 2),
];

/// Raw scores stretched over 0 to [`BEST`]; all equal: all zero.
pub fn normalized(raw: &[i64]) -> Vec<i64> {
    let (least, most) = (raw.iter().min().copied().unwrap_or(0), raw.iter().max().copied().unwrap_or(0));
    let span = i128::from(most) - i128::from(least);
    let stretch = |score: &i64| {
        let above = i128::from(*score) - i128::from(least);
        if span == 0 { 0 } else { i64::try_from(above * i128::from(BEST) / span).unwrap_or(0) }
    };
    raw.iter().map(stretch).collect()
}
