//! Which processors share a core and a memory node, and which of those that are free a container gets.

use std::collections::BTreeMap;
use std::path::Path;

use super::set::{self, Set};

/// Where a processor is: memory node (socket where that is not told), core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The memory node.
    pub node: u32,
    /// The core, by the lowest processor of it.
    pub core: u32,
}

/// The processors of a machine.
pub type Topology = BTreeMap<u32, Place>;

/// Reads a machine's from `/sys/devices/system`. What is not told there is a core of its own, on node 0.
pub fn read(system: &Path) -> Topology {
    let text = |path: &str| std::fs::read_to_string(system.join(path)).unwrap_or_default();
    let online = set::parse(&text("cpu/online")).unwrap_or_default();
    let mut topology: Topology = online.iter().map(|cpu| (*cpu, Place { node: 0, core: *cpu })).collect();
    for cpu in online {
        let siblings = set::parse(&text(&format!("cpu/cpu{cpu}/topology/thread_siblings_list")));
        if let (Some(first), Some(place)) =
            (siblings.ok().and_then(|s| s.first().copied()), topology.get_mut(&cpu))
        {
            place.core = first;
        }
    }
    for node in set::parse(&text("node/online")).unwrap_or_default() {
        for cpu in set::parse(&text(&format!("node/node{node}/cpulist"))).unwrap_or_default() {
            if let Some(place) = topology.get_mut(&cpu) {
                place.node = node;
            }
        }
    }
    topology
}

/// So many of the free processors, close together: on one node if one has room, there whole cores first, then what is left
/// of cores that are in use already. `None`: there are not enough.
pub fn take(topology: &Topology, free: &Set, count: usize) -> Option<Set> {
    if free.len() < count {
        return None;
    }
    let mut by_node: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for cpu in free {
        by_node.entry(topology.get(cpu).map_or(0, |p| p.node)).or_default().push(*cpu);
    }
    // The tightest node that has room; without one, those with the most room, so that few are crossed.
    let mut nodes: Vec<Vec<u32>> = by_node.into_values().collect();
    nodes.sort_by_key(|cpus| std::cmp::Reverse(cpus.len()));
    if let Some(fits) = nodes.iter().filter(|cpus| cpus.len() >= count).min_by_key(|cpus| cpus.len()).cloned()
    {
        nodes = vec![fits];
    }
    let mut taken = Set::new();
    for cpus in nodes {
        take_of_node(topology, &cpus, count, &mut taken);
    }
    (taken.len() == count).then_some(taken)
}

fn take_of_node(topology: &Topology, cpus: &[u32], count: usize, taken: &mut Set) {
    let core = |cpu: &u32| topology.get(cpu).map_or(*cpu, |p| p.core);
    let width = |of: u32| topology.values().filter(|p| p.core == of).count().max(1);
    let mut cores: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for cpu in cpus {
        cores.entry(core(cpu)).or_default().push(*cpu);
    }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes of two cores of two threads: core n has the processors n and n + 4.
    fn machine() -> Topology {
        (0..8).map(|cpu| (cpu, Place { node: (cpu % 4) / 2, core: cpu % 4 })).collect()
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
            let taken = take(&machine(), &set::parse(free).expect("a set"), count);
            assert_eq!(taken.map(|t| set::words(&t)).as_deref(), expected, "{count} of {free}");
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
        write("node/online", "0-1\n");
        write("node/node1/cpulist", "1\n");
        let place = |node, core| Place { node, core };
        let expected = Topology::from([(0, place(0, 0)), (1, place(1, 1)), (2, place(0, 0))]);
        assert_eq!(read(dir.path()), expected);
    }
}
