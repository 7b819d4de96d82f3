//! One decision a file. A filter says why a node cannot take a pod; a score prefers one node to another.

pub mod affinity;
pub mod node_ports;
pub mod resources_fit;
pub mod taints;
pub mod unschedulable;
pub mod unsupported;

use crate::cycle::Room;
use crate::view::PodView;

/// Why a node cannot take a pod, in the words that users search for; several reasons may hold.
pub type Reasons = Vec<String>;

/// A filter.
pub type Filter = fn(&PodView, &Room) -> Reasons;

/// The best score. It is finer than a percentage, so that one pod more on a large node counts.
pub const BEST: i64 = 1_000_000;

/// A score from 0 (worst) to [`BEST`].
pub type Score = fn(&PodView, &Room) -> i64;

/// Every filter, in Kubernetes' order: the first that refuses names the reasons.
pub const FILTERS: [Filter; 6] = [
    unsupported::filter,
    unschedulable::filter,
    taints::filter,
    affinity::filter,
    node_ports::filter,
    resources_fit::filter,
];

/// Every score.
pub const SCORES: [Score; 2] = [resources_fit::least_allocated, taints::prefer_untainted];
