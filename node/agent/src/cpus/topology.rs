//! Which processors share a core, a cache, a memory node and a socket, and which of those that are free a container gets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::options::{Choice, Options};
use super::set::{self, Set};
use crate::numa::hints::{Mask, masks};

/// Where a processor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The memory node.
    pub node: u32,
    /// The core, by the lowest processor of it.
    pub core: u32,
    /// The socket.
    pub socket: u32,
    /// The last-level cache, by the lowest processor of it; `None`: the kernel does not say.
    pub cache: Option<u32>,
}

/// The processors of a machine.
pub type Topology = BTreeMap<u32, Place>;

/// The level of the last cache before memory.
const LAST_LEVEL: &str = "3";

/// Reads a machine's from `/sys/devices/system`. What is not told there is a core of its own, on node 0 of socket 0.
pub fn read(system: &Path) -> Topology {
    let text = |path: &str| std::fs::read_to_string(system.join(path)).unwrap_or_default();
    let first = |path: &str| set::parse(&text(path)).ok().and_then(|set| set.first().copied());
    let online = set::parse(&text("cpu/online")).unwrap_or_default();
    let place = |cpu: u32| {
        let core = first(&format!("cpu/cpu{cpu}/topology/thread_siblings_list")).unwrap_or(cpu);
        let socket = text(&format!("cpu/cpu{cpu}/topology/physical_package_id")).trim().parse().unwrap_or(0);
        let caches = (0..8).map(|index| format!("cpu/cpu{cpu}/cache/index{index}"));
        let mut last = caches.filter(|cache| text(&format!("{cache}/level")).trim() == LAST_LEVEL);
        let cache = last.next().and_then(|cache| first(&format!("{cache}/shared_cpu_list")));
        Place { node: 0, core, socket, cache }
    };
    let mut topology: Topology = online.into_iter().map(|cpu| (cpu, place(cpu))).collect();
    for node in set::parse(&text("node/online")).unwrap_or_default() {
        for cpu in set::parse(&text(&format!("node/node{node}/cpulist"))).unwrap_or_default() {
            if let Some(place) = topology.get_mut(&cpu) {
                place.node = node;
            }
        }
    }
    topology
}

/// Processors of a core, as Kubernetes counts them: all cores of a machine have as many.
pub fn per_core(topology: &Topology) -> usize {
    let cores: BTreeSet<u32> = topology.values().map(|place| place.core).collect();
    topology.len().checked_div(cores.len()).unwrap_or(1).max(1)
}

/// Those of which the whole core is among them.
pub fn whole_cores(topology: &Topology, cpus: &Set) -> Set {
    let core = |cpu: &u32| topology.get(cpu).map_or(*cpu, |p| p.core);
    let broken: Set = topology.iter().filter(|(cpu, _)| !cpus.contains(cpu)).map(|(_, p)| p.core).collect();
    cpus.iter().copied().filter(|cpu| !broken.contains(&core(cpu))).collect()
}

/// So many of the free processors: spread over memory nodes where that is chosen and works out, else close together. `None`:
/// there are not enough.
pub fn take(topology: &Topology, free: &Set, count: usize, options: &Options) -> Option<Set> {
    if free.len() < count {
        return None;
    }
    let mut nodes: BTreeMap<u32, Set> = BTreeMap::new();
    for cpu in free {
        nodes.entry(topology.get(cpu).map_or(0, |p| p.node)).or_default().insert(*cpu);
    }
    let shares = options.has(Choice::AcrossNodes).then(|| {
        let unit = if options.has(Choice::FullCores) { per_core(topology) } else { 1 };
        spread(&nodes, count, unit)
    });
    let shares = shares.flatten().unwrap_or_else(|| pack(&nodes, count));
    let mut taken = Set::new();
    for (node, share) in shares {
        if let Some(cpus) = nodes.get(&node) {
            taken.extend(of_node(topology, cpus, share, options));
        }
    }
    (taken.len() == count).then_some(taken)
}

/// How many of which memory node: the tightest one that has room; without one, those with the most room, so that few are
/// crossed.
fn pack(nodes: &BTreeMap<u32, Set>, count: usize) -> Vec<(u32, usize)> {
    let fits = nodes.iter().filter(|(_, cpus)| cpus.len() >= count).min_by_key(|(_, cpus)| cpus.len());
    if let Some((node, _)) = fits {
        return vec![(*node, count)];
    }
    let mut order: Vec<(u32, usize)> = nodes.iter().map(|(node, cpus)| (*node, cpus.len())).collect();
    order.sort_by_key(|(_, free)| std::cmp::Reverse(*free));
    let mut left = count;
    for (_, share) in &mut order {
        *share = left.min(*share);
        left -= *share;
    }
    order
}

/// How many of which memory node, as many of each but for a few, in groups of `unit`: of as few nodes as can, and so that
/// what is left of all nodes is as even as can be. `None`: that does not work out.
fn spread(nodes: &BTreeMap<u32, Set>, count: usize, unit: usize) -> Option<Vec<(u32, usize)>> {
    if !count.is_multiple_of(unit) {
        return None;
    }
    let free = |node: u32| nodes.get(&node).map_or(0, Set::len);
    let shares = |mask: Mask| {
        let many = usize::try_from(mask.count()).ok()?;
        let even = count.checked_div(many)? / unit * unit;
        let mut shares: Vec<(u32, usize)> = mask.nodes().map(|node| (node, even)).collect();
        shares.sort_by_key(|(node, _)| std::cmp::Reverse(free(*node)));
        let mut left = count - even * many;
        for (node, share) in &mut shares {
            if left > 0 && free(*node) >= *share + unit {
                (*share, left) = (*share + unit, left - unit);
            }
        }
        (left == 0 && shares.iter().all(|(node, share)| free(*node) >= *share)).then_some(shares)
    };
    // Sums of squares tell what is even: their sum is the same for all.
    let rest = |shares: &[(u32, usize)]| -> usize {
        let taken = |node: u32| shares.iter().find(|(id, _)| *id == node).map_or(0, |(_, share)| *share);
        nodes.keys().map(|node| (free(*node) - taken(*node)).pow(2)).sum()
    };
    let ways = masks(Mask::of(nodes.keys().copied())).filter_map(|mask| Some((mask, shares(mask)?)));
    ways.min_by_key(|(mask, shares)| (mask.count(), rest(shares), *mask)).map(|(_, shares)| shares)
}

/// So many of one memory node's: of few caches where that is chosen, and of few cores.
fn of_node(topology: &Topology, cpus: &Set, count: usize, options: &Options) -> Set {
    let mut taken = Set::new();
    if options.has(Choice::ByCache) {
        let cache = |cpu: &u32| topology.get(cpu).and_then(|p| p.cache);
        let mut caches: BTreeMap<u32, Set> = BTreeMap::new();
        for cpu in cpus {
            caches.entry(cache(cpu).unwrap_or(u32::MAX)).or_default().insert(*cpu);
        }
        let size = |id: u32| topology.values().filter(|p| p.cache == Some(id)).count();
        caches.retain(|id, cpus| {
            let whole = cpus.len() == size(*id) && taken.len() + cpus.len() <= count;
            taken.extend(cpus.iter().filter(|_| whole));
            !whole
        });
        let missing = count - taken.len();
        let fits = caches.values().filter(|cpus| cpus.len() >= missing).min_by_key(|cpus| cpus.len());
        if let Some(cpus) = fits {
            taken.extend(of_cores(topology, cpus, missing, options));
        }
    }
    let rest: Set = cpus.difference(&taken).copied().collect();
    let missing = count - taken.len();
    taken.extend(of_cores(topology, &rest, missing, options));
    taken
}

/// So many of these: whole cores first, then what is left of cores that are in use already; or as many cores as can be.
fn of_cores(topology: &Topology, cpus: &Set, count: usize, options: &Options) -> Set {
    let core = |cpu: &u32| topology.get(cpu).map_or(*cpu, |p| p.core);
    let width = |of: u32| topology.values().filter(|p| p.core == of).count().max(1);
    let mut cores: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for cpu in cpus {
        cores.entry(core(cpu)).or_default().push(*cpu);
    }
    if options.has(Choice::AcrossCores) {
        let turns = cores.values().flat_map(|threads| threads.iter().enumerate());
        let mut turns: Vec<(usize, u32)> = turns.map(|(turn, cpu)| (turn, *cpu)).collect();
        turns.sort_unstable();
        return turns.into_iter().take(count).map(|(_, cpu)| cpu).collect();
    }
    let mut taken = Set::new();
    for (id, threads) in &cores {
        let whole = threads.len() == width(*id);
        if whole && taken.len() + threads.len() <= count {
            taken.extend(threads);
        }
    }
    // Cores of which the fewest are free: whole ones stay whole for others.
    let mut rest: Vec<(usize, u32)> = Vec::new();
    for threads in cores.values() {
        let left: Vec<u32> = threads.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
        rest.extend(left.iter().map(|cpu| (left.len(), *cpu)));
    }
    rest.sort_unstable();
    let missing = count.saturating_sub(taken.len());
    taken.extend(rest.into_iter().take(missing).map(|(_, cpu)| cpu));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two cores of two threads: core n has the processors n and n + 4.
    fn machine() -> Topology {
        (0..8).map(|cpu| (cpu, Place { node: (cpu % 4) / 2, core: cpu % 4, ..Place::default() })).collect()
    }

    fn taken(topology: &Topology, free: &str, count: usize, options: &Options) -> Option<String> {
        take(topology, &set::parse(free).expect("a set"), count, options).map(|t| set::words(&t))
    }

    #[test]
    fn processors_are_taken_close_together() {
        for (free, count, expected) in [
            ("0-7", 2, Some("0,4")),
            ("0-7", 4, Some("0-1,4-5")),
            ("1-7", 4, Some("2-3,6-7")),
            // What is left of a core goes before a whole one is broken.
            ("1-7", 1, Some("4")),
            ("0-7", 6, Some("0-2,4-6")),
            ("1,3,6", 3, Some("1,3,6")),
            ("1", 2, None),
        ] {
            let taken = taken(&machine(), free, count, &Options::default());
            assert_eq!(taken.as_deref(), expected, "{count} of {free}");
        }
    }

    #[test]
    fn processors_are_spread_where_that_is_chosen() {
        // Two nodes of eight in cores of two.
        let wide: Topology =
            (0..16).map(|cpu| (cpu, Place { node: cpu / 8, core: cpu / 2, ..Place::default() })).collect();
        let across = Options::of([Choice::AcrossNodes]);
        let whole = Options::of([Choice::AcrossNodes, Choice::FullCores]);
        for (free, count, options, expected) in [
            // One node does.
            ("0-15", 8, &across, "0-7"),
            ("1-15", 6, &across, "8-13"),
            // As many of each.
            ("0-15", 10, &across, "0-4,8-12"),
            ("0-15", 11, &across, "0-5,8-12"),
            ("0-15", 10, &whole, "0-5,8-11"),
            // One has not as many: the others are of the other.
            ("0-1,8-15", 9, &across, "0,8-15"),
        ] {
            assert_eq!(taken(&wide, free, count, options).as_deref(), Some(expected), "{count} of {free}");
        }
        let apart = Options::of([Choice::AcrossCores]);
        assert_eq!(taken(&wide, "0-15", 4, &apart).as_deref(), Some("0,2,4,6"));
        assert_eq!(taken(&wide, "0-15", 6, &apart).as_deref(), Some("0-4,6"));
    }

    #[test]
    fn caches_are_not_shared_without_need() {
        // One node of twelve, a cache for each four of them.
        let machine: Topology = (0..12)
            .map(|cpu| (cpu, Place { core: cpu / 2, cache: Some(cpu / 4 * 4), ..Place::default() }))
            .collect();
        let by_cache = Options::of([Choice::ByCache]);
        for (free, count, packed, expected) in [
            // Whole caches, and of the next one what is missing.
            ("0-11", 6, "0-5", "0-5"),
            ("2-11", 4, "2-5", "4-7"),
            ("2-11", 6, "2-7", "2-7"),
            ("2-9", 2, "2-3", "2-3"),
            // No cache has three: they are of two.
            ("2-3,6-7", 3, "2-3,6", "2-3,6"),
        ] {
            assert_eq!(taken(&machine, free, count, &Options::default()).as_deref(), Some(packed));
            assert_eq!(
                taken(&machine, free, count, &by_cache).as_deref(),
                Some(expected),
                "{count} of {free}"
            );
        }
    }

    #[test]
    fn a_machine_tells_its_topology() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("a file");
        };
        write("cpu/online", "0-2\n");
        write("cpu/cpu0/topology/thread_siblings_list", "0,2\n");
        write("cpu/cpu2/topology/thread_siblings_list", "0,2\n");
        write("cpu/cpu1/topology/physical_package_id", "1\n");
        write("cpu/cpu2/cache/index0/level", "1\n");
        write("cpu/cpu2/cache/index0/shared_cpu_list", "2\n");
        write("cpu/cpu2/cache/index3/level", "3\n");
        write("cpu/cpu2/cache/index3/shared_cpu_list", "0-2\n");
        write("node/online", "0-1\n");
        write("node/node1/cpulist", "1\n");
        let place = |node, core, cache| Place { node, core, socket: node, cache };
        let expected =
            Topology::from([(0, place(0, 0, None)), (1, place(1, 1, None)), (2, place(0, 0, Some(0)))]);
        assert_eq!(read(dir.path()), expected);
        assert_eq!((per_core(&expected), per_core(&machine())), (1, 2));
        assert_eq!(set::words(&whole_cores(&machine(), &Set::from([0, 1, 4, 6]))), "0,4");
    }
}
