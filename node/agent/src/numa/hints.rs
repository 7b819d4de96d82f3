//! Pure: which memory nodes of a machine a container is to be on, from what each manager of a resource offers (the
//! kubelet's topology manager).

use std::collections::{BTreeMap, BTreeSet};

/// Memory nodes have numbers below this.
pub const MOST: u32 = 64;

/// A set of memory nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mask(u64);

impl Mask {
    /// Of these nodes; those from [`MOST`] on are left out.
    pub fn of(nodes: impl IntoIterator<Item = u32>) -> Self {
        Self(nodes.into_iter().filter(|n| *n < MOST).fold(0, |mask, node| mask | 1 << node))
    }

    /// Whether a node is in it.
    pub fn has(self, node: u32) -> bool {
        node < MOST && self.0 & (1 << node) != 0
    }

    /// How many nodes are in it.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Its nodes in their order.
    pub fn nodes(self) -> impl Iterator<Item = u32> {
        (0..MOST).filter(move |node| self.has(*node))
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all of `other` is in it.
    pub fn covers(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Fewer nodes; or as many that are nearer to each other, or have lower numbers.
    pub fn is_narrower_than(self, other: Self, distances: &Distances) -> bool {
        let apart = |mask: Self| -> u64 {
            let pairs = distances.iter().filter(|((a, b), _)| mask.has(*a) && mask.has(*b));
            pairs.map(|(_, distance)| u64::from(*distance)).sum()
        };
        (self.count(), apart(self), self.0) < (other.count(), apart(other), other.0)
    }
}

/// Every set of these nodes but the empty one. There are few nodes: see [`Policy`].
pub fn masks(nodes: Mask) -> impl Iterator<Item = Mask> {
    let mut next = Some(nodes.0 & nodes.0.wrapping_neg()).filter(|first| *first != 0);
    std::iter::from_fn(move || {
        let now = next?;
        // The next larger number that has bits of `nodes` alone.
        next = Some((now | !nodes.0).wrapping_add(1) & nodes.0).filter(|more| *more != 0);
        Some(Mask(now))
    })
}

/// A set of nodes where a resource is to be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// `None`: anywhere.
    pub nodes: Option<Mask>,
    /// On no more nodes than the amount needs at all.
    pub preferred: bool,
}

/// By resource: where it can be had. `None`: it does not matter; an empty list: nowhere.
pub type Offers = BTreeMap<String, Option<Vec<Hint>>>;

/// Hints for `wanted` of something: wherever enough is free, and preferred where no fewer nodes have as many at all.
/// `there` and `free` count on a set of nodes.
pub fn counted(
    nodes: Mask,
    wanted: usize,
    there: impl Fn(Mask) -> usize,
    free: impl Fn(Mask) -> usize,
) -> Vec<Hint> {
    let least = fewest(nodes, wanted, there);
    let fits = masks(nodes).filter(|m| free(*m) >= wanted);
    fits.map(|m| Hint { nodes: Some(m), preferred: m.count() == least }).collect()
}

/// The fewest of these nodes on which there are as many as are `wanted`, whether they are free or not.
pub fn fewest(nodes: Mask, wanted: usize, there: impl Fn(Mask) -> usize) -> u32 {
    masks(nodes).filter(|m| there(*m) >= wanted).map(Mask::count).min().unwrap_or(nodes.count())
}

/// How far memory nodes are from each other, as the kernel tells it (10: the same node); empty: that does not count.
pub type Distances = BTreeMap<(u32, u32), u32>;

/// What an operator set. With any policy but `None` a machine has [`MOST_NODES`] memory nodes at most, or as many as an option says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Managers choose on their own.
    #[default]
    None,
    /// The best there is.
    BestEffort,
    /// The best there is at all, or the pod is refused.
    Restricted,
    /// One memory node, or the pod is refused.
    SingleNumaNode,
}

/// Unless an option says more, as with the kubelet: the sets of nodes that are looked at double with each.
pub const MOST_NODES: usize = 8;

impl Policy {
    /// The kubelet's words.
    pub const WORDS: [(&str, Self); 4] = [
        ("none", Self::None),
        ("best-effort", Self::BestEffort),
        ("restricted", Self::Restricted),
        ("single-numa-node", Self::SingleNumaNode),
    ];

    /// The kubelet's word for it.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, policy)| *policy == self).map_or("none", |(word, _)| word)
    }

    /// Where everything is to be had from; `None`: nowhere that this policy allows.
    pub fn choose(self, nodes: Mask, offers: &[Offers], distances: &Distances) -> Option<Hint> {
        if self == Self::None {
            return Some(Hint::default());
        }
        let anywhere = |preferred| vec![Hint { nodes: None, preferred }];
        let mut lists: Vec<Vec<Hint>> = Vec::new();
        for offer in offers {
            for hints in offer.values() {
                lists.push(match hints {
                    None => anywhere(true),
                    Some(hints) if hints.is_empty() => anywhere(false),
                    Some(hints) => hints.clone(),
                });
            }
        }
        if self == Self::SingleNumaNode {
            let single = |h: &Hint| h.preferred && h.nodes.is_none_or(|mask| mask.count() == 1);
            lists.iter_mut().for_each(|hints| hints.retain(single));
        }
        let best = merge(nodes, &lists, distances);
        match self {
            Self::None | Self::BestEffort => Some(best),
            Self::Restricted => Some(best).filter(|hint| hint.preferred),
            Self::SingleNumaNode => {
                let all = best.nodes == Some(nodes);
                Some(Hint { nodes: best.nodes.filter(|_| !all), ..best }).filter(|hint| hint.preferred)
            }
        }
    }
}

/// The best of all ways to take one hint of each list. Ways that lead to the same are one: there are never more of them
/// than there are sets of nodes, twice.
fn merge(nodes: Mask, lists: &[Vec<Hint>], distances: &Distances) -> Hint {
    // What all named nodes have in common, whether all was preferred, and whether any node was named.
    let mut ways = BTreeSet::from([(nodes, true, false)]);
    for hints in lists {
        let mut next = BTreeSet::new();
        for (common, preferred, named) in &ways {
            for hint in hints {
                let merged = hint.nodes.map_or(*common, |mask| common.and(mask));
                let equal = hint.nodes.is_none_or(|mask| !named || mask == *common);
                next.insert((merged, *preferred && hint.preferred && equal, *named || hint.nodes.is_some()));
            }
        }
        ways = next;
    }
    let least = |hints: &Vec<Hint>| {
        hints.iter().filter(|h| h.preferred).filter_map(|h| h.nodes).map(Mask::count).min()
    };
    // As many nodes as the resource needs that needs the most.
    let target = lists.iter().filter_map(least).max().unwrap_or(0);
    let ways = ways.into_iter().filter(|(common, ..)| common.count() > 0);
    let ways = ways.map(|(common, preferred, _)| (common, preferred));
    let best = ways.reduce(|best, one| better(best, one, target, distances));
    best.map_or(Hint { nodes: Some(nodes), preferred: false }, |(common, preferred)| Hint {
        nodes: Some(common),
        preferred,
    })
}

/// Preferred before others, and of those the narrowest; of what is not preferred, what is nearest to `target` nodes.
fn better(a: (Mask, bool), b: (Mask, bool), target: u32, distances: &Distances) -> (Mask, bool) {
    if a.1 != b.1 {
        return if a.1 { a } else { b };
    }
    let narrower = if b.0.is_narrower_than(a.0, distances) { b } else { a };
    if a.1 || a.0.count() == b.0.count() {
        return narrower;
    }
    let (few, many) = if a.0.count() < b.0.count() { (a, b) } else { (b, a) };
    // Below the target more nodes are better, above it fewer.
    if many.0.count() <= target { many } else { few }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(nodes: &[u32]) -> Mask {
        Mask::of(nodes.iter().copied())
    }

    fn offer(resource: &str, hints: &[(&[u32], bool)]) -> Offers {
        let hints =
            hints.iter().map(|(nodes, preferred)| Hint { nodes: Some(mask(nodes)), preferred: *preferred });
        Offers::from([(resource.to_owned(), Some(hints.collect()))])
    }

    fn chosen(policy: Policy, nodes: &[u32], offers: &[Offers]) -> Option<(Vec<u32>, bool)> {
        let hint = policy.choose(mask(nodes), offers, &Distances::new())?;
        Some((hint.nodes.map(|m| m.nodes().collect()).unwrap_or_default(), hint.preferred))
    }

    #[test]
    fn every_set_of_nodes_is_looked_at() {
        let all: Vec<Vec<u32>> = masks(mask(&[0, 2, 5])).map(|m| m.nodes().collect()).collect();
        assert_eq!(all, [vec![0], vec![2], vec![0, 2], vec![5], vec![0, 5], vec![2, 5], vec![0, 2, 5]]);
        assert_eq!(masks(Mask::default()).count(), 0);
        assert_eq!(masks(Mask::of(56..64)).count(), 255);
    }

    #[test]
    fn policies_choose_and_refuse() {
        use Policy::{BestEffort, Restricted, SingleNumaNode};
        let two = [0, 1];
        // Both on node 1, one of them anywhere.
        let cpu = offer("cpu", &[(&[0], true), (&[1], true), (&[0, 1], false)]);
        let gpu = offer("gpu", &[(&[1], true)]);
        for policy in [BestEffort, Restricted, SingleNumaNode] {
            assert_eq!(
                chosen(policy, &two, &[cpu.clone(), gpu.clone()]),
                Some((vec![1], true)),
                "{policy:?}"
            );
            let free = Offers::from([("x".to_owned(), None)]);
            assert_eq!(chosen(policy, &two, &[cpu.clone(), free]), Some((vec![0], true)), "{policy:?}");
        }
        // Two nodes are what the amount needs at all: restricted takes them, one node alone is asked for by the last.
        let wide = offer("cpu", &[(&[0, 1], true)]);
        assert_eq!(chosen(Restricted, &two, std::slice::from_ref(&wide)), Some((vec![0, 1], true)));
        assert_eq!(chosen(SingleNumaNode, &two, &[wide]), None);
        // It would fit one node, and does not now.
        let spread = offer("cpu", &[(&[0, 1], false)]);
        assert_eq!(chosen(BestEffort, &two, std::slice::from_ref(&spread)), Some((vec![0, 1], false)));
        assert_eq!(chosen(Restricted, &two, &[spread]), None);
        // Each fits one node, and not the same.
        let other = offer("gpu", &[(&[1], true)]);
        let one = offer("cpu", &[(&[0], true), (&[0, 1], false)]);
        assert_eq!(chosen(Restricted, &two, &[one.clone(), other.clone()]), None);
        assert_eq!(chosen(BestEffort, &two, &[one, other]), Some((vec![1], false)));
        // Nowhere at all.
        assert_eq!(chosen(Restricted, &two, &[offer("gpu", &[])]), None);
        assert_eq!(chosen(BestEffort, &two, &[offer("gpu", &[])]), Some((vec![0, 1], false)));
        // Nothing asks for anything: a single node is not made up.
        assert_eq!(chosen(SingleNumaNode, &two, &[]), Some((vec![], true)));
    }

    #[test]
    fn what_needs_the_most_nodes_says_how_many() {
        // Memory needs two nodes, processors one: none is both, so as many as the memory needs.
        let nodes = [0, 1, 2, 3];
        let cpu = offer("cpu", &[(&[2], true), (&[0, 2], false), (&[2, 3], false), (&[0, 1, 2, 3], false)]);
        let memory = offer("memory", &[(&[2, 3], true)]);
        assert_eq!(chosen(Policy::BestEffort, &nodes, &[cpu, memory]), Some((vec![2, 3], false)));
    }

    #[test]
    fn many_resources_are_merged_in_little_time() {
        // Eight nodes and a dozen resources: 255 to the twelfth ways.
        let nodes = Mask::of(0..8);
        let hints =
            || Some(masks(nodes).map(|m| Hint { nodes: Some(m), preferred: m.count() == 1 }).collect());
        let offers: Offers = (0..12).map(|n| (n.to_string(), hints())).collect();
        assert_eq!(chosen(Policy::Restricted, &[0, 1, 2, 3, 4, 5, 6, 7], &[offers]), Some((vec![0], true)));
    }

    #[test]
    fn of_as_many_nodes_the_nearest_are_chosen() {
        // Nodes 0 and 3 are neighbours, and 1 and 2.
        let near = |a: u32, b: u32| a == b || a + b == 3;
        let pairs = (0..4).flat_map(|a| (0..4).map(move |b| (a, b)));
        let distances: Distances = pairs.map(|(a, b)| ((a, b), if near(a, b) { 10 } else { 20 })).collect();
        let cpu = offer("cpu", &[(&[0, 1], true), (&[0, 3], true), (&[1, 2], true), (&[0, 1, 2, 3], false)]);
        let chosen = |distances: &Distances| {
            let hint = Policy::BestEffort.choose(mask(&[0, 1, 2, 3]), std::slice::from_ref(&cpu), distances);
            hint.and_then(|hint| hint.nodes).map(|mask| mask.nodes().collect::<Vec<_>>())
        };
        assert_eq!(chosen(&Distances::new()), Some(vec![0, 1]));
        assert_eq!(chosen(&distances), Some(vec![1, 2]));
    }

    #[test]
    fn amounts_become_hints() {
        // Node 0 has four of which one is free, node 1 has four that are free.
        let there = |m: Mask| m.nodes().count() * 4;
        let free = |m: Mask| m.nodes().map(|n| if n == 0 { 1 } else { 4 }).sum();
        let hints = counted(mask(&[0, 1]), 2, there, free);
        let hint = |nodes: &[u32], preferred| Hint { nodes: Some(mask(nodes)), preferred };
        assert_eq!(hints, [hint(&[1], true), hint(&[0, 1], false)]);
        assert_eq!(counted(mask(&[0, 1]), 5, there, free), [hint(&[0, 1], true)]);
        assert_eq!(counted(mask(&[0, 1]), 6, there, free), []);
    }
}
