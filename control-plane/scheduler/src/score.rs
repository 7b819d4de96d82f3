//! Which of the nodes that can take a pod is best: the emptiest, with the fewest siblings of the pod.

use coracle_controllers::view::Node;

use crate::demand::Demand;
use crate::plugins::{node_selector, taints};
use crate::snapshot::NodeInfo;

// What a pod that requests nothing is counted as, so that such pods spread too (100 thousandths of a core, 200 MiB).
const DEFAULT_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 << 20;

/// Parts of a score; higher is better. Compared by [`Score::total`] among the candidates of one pod.
#[derive(Clone, Copy, Debug, Default)]
pub struct Score {
    /// Share of CPU and memory still free after the pod, 0 to 100.
    pub free: i64,
    /// Pods of the same controller already there.
    pub siblings: i64,
    /// Sum of the weights of preferred node affinity.
    pub preference: i64,
    /// PreferNoSchedule taints not tolerated.
    pub disliked: i64,
}

/// The parts of one node's score.
pub fn score(demand: &Demand, node: &Node, info: &NodeInfo) -> Score {
    let left = |resource: &str, default: i64| {
        let (has, asked) = (info.allocatable.of(resource), demand.requests.of(resource));
        // Pods without requests are counted by number.
        let uncounted = i64::try_from(info.pods).unwrap_or(0).saturating_mul(default);
        let used = info.requested.of(resource).max(uncounted).saturating_add(if asked > 0 { asked } else { default });
        if has <= 0 { 0 } else { ((has - used).max(0) as i128 * 100 / has as i128) as i64 }
    };
    Score {
        free: (left("cpu", DEFAULT_CPU) + left("memory", DEFAULT_MEMORY)) / 2,
        siblings: if demand.owner.is_empty() { 0 } else { info.by_owner.get(&demand.owner).copied().unwrap_or(0) as i64 },
        preference: node_selector::preference(demand, node),
        disliked: taints::disliked(demand, node) as i64,
    }
}

impl Score {
    /// One number, with each part scaled by its largest among the candidates and weighted as in Kubernetes.
    pub fn total(&self, most: &Score) -> i64 {
        let share = |part: i64, most: i64| if most > 0 { part * 100 / most } else { 0 };
        self.free
            + 2 * (100 - share(self.siblings, most.siblings))
            + 2 * share(self.preference, most.preference)
            + 3 * (100 - share(self.disliked, most.disliked))
    }

    /// The larger of each part.
    pub fn max(self, other: Self) -> Self {
        Self {
            free: self.free.max(other.free),
            siblings: self.siblings.max(other.siblings),
            preference: self.preference.max(other.preference),
            disliked: self.disliked.max(other.disliked),
        }
    }
}
