//! Pure, but for its file: which containers have processors of their own (the kubelet's static CPU manager policy).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::options::{Choice, Options};
use super::set::{self, Set};
use super::topology::{self, Topology};
use crate::checkpoint::{self, Checkpoint, Entries};
use crate::numa::hints::{self, Hint, Mask};

/// The policy's name in the checkpoint.
pub const STATIC: &str = "static";

/// What a checkpoint holds.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    default_cpu_set: String,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, String>>,
}

/// Why a container does not get its processors, in the kubelet's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too few are free.
    #[error("not enough cpus available to satisfy request: requested={requested}, available={available}")]
    Processors {
        /// Asked for.
        requested: usize,
        /// Free.
        available: usize,
    },
    /// Whole cores alone are given out, and it asks for parts.
    #[error("SMT Alignment Error: requested {requested} cpus not multiple cpus per core = {per_core}")]
    Threads {
        /// Asked for.
        requested: usize,
        /// Processors of a core.
        per_core: usize,
    },
    /// Too few whole cores are free.
    #[error(
        "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, \
         requested CPUs = {requested}, CPUs per core = {per_core}"
    )]
    Cores {
        /// Processors of cores that are wholly free.
        available: usize,
        /// Asked for.
        requested: usize,
        /// Processors of a core.
        per_core: usize,
    },
}

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// The machine's processors.
    pub topology: Topology,
    /// Never anybody's own.
    pub reserved: Set,
    /// What an operator chose.
    pub options: Options,
    /// By pod and container.
    pub entries: Entries<Set>,
}

impl Ledger {
    /// What all containers share that have none of their own.
    pub fn shared(&self) -> Set {
        let own: Set = self.entries.values().flat_map(BTreeMap::values).flatten().copied().collect();
        let strict = self.options.has(Choice::Strict);
        let taken = |cpu: &u32| own.contains(cpu) || strict && self.reserved.contains(cpu);
        self.topology.keys().copied().filter(|cpu| !taken(cpu)).collect()
    }

    /// What containers of a pod leave that came `before` one: those of init containers that have ended by then (true), but
    /// for what others took over.
    pub fn left(&self, pod: &str, before: &[(&str, bool)]) -> Set {
        let of = |name: &str| self.entries.get(pod).and_then(|c| c.get(name));
        let mut left = Set::new();
        for (name, ends) in before {
            for cpu in of(name).into_iter().flatten() {
                let _ = if *ends { left.insert(*cpu) } else { left.remove(cpu) };
            }
        }
        left
    }

    /// The memory nodes of all processors.
    pub fn mask(&self) -> Mask {
        Mask::of(self.topology.values().map(|place| place.node))
    }

    /// Where so many processors are to be had, with what is `left` of the pod's own; preferred are the fewest nodes that
    /// have so many at all.
    pub fn hints(&self, count: usize, left: &Set) -> Vec<Hint> {
        let on = |mask: Mask, cpu: &u32| self.topology.get(cpu).is_some_and(|place| mask.has(place.node));
        let free = self.free(left);
        let there = |mask| self.topology.keys().filter(|cpu| on(mask, cpu)).count();
        let mut hints =
            hints::counted(self.mask(), count, there, |mask| free.iter().filter(|cpu| on(mask, cpu)).count());
        if self.options.has(Choice::BySocket) {
            // As few sockets as the fewest nodes need.
            let nodes =
                self.mask().count() / u32::try_from(self.sockets(self.mask()).len()).unwrap_or(1).max(1);
            let fewest = hints::fewest(self.mask(), count, there).div_ceil(nodes.max(1));
            let sockets = |mask| u32::try_from(self.sockets(mask).len()).unwrap_or(u32::MAX);
            hints.iter_mut().for_each(|hint| {
                hint.preferred |= hint.nodes.is_some_and(|mask| sockets(mask) == fewest);
            });
        }
        hints
    }

    fn sockets(&self, mask: Mask) -> Set {
        self.topology.values().filter(|place| mask.has(place.node)).map(|place| place.socket).collect()
    }

    fn free(&self, left: &Set) -> Set {
        let free = left.iter().copied().chain(self.shared().difference(&self.reserved).copied()).collect();
        match self.options.has(Choice::FullCores) {
            // Nothing of a core of which something is reserved.
            true => topology::whole_cores(&self.topology, &free),
            false => free,
        }
    }

    /// Gives a container processors of its own, for as long as its pod is there: first of what is `left` of the pod's own,
    /// of these nodes as far as they have any. What it has, it keeps. Returns whether anything changed.
    ///
    /// # Errors
    /// When there are not enough; nothing changed then.
    pub fn give(
        &mut self,
        (pod, container): (&str, &str),
        count: usize,
        left: &Set,
        nodes: Option<Mask>,
    ) -> Result<bool, Error> {
        let has = self.entries.get(pod).and_then(|c| c.get(container)).map_or(0, Set::len);
        if count == 0 || has == count {
            return Ok(false);
        }
        let per_core = topology::per_core(&self.topology);
        if self.options.has(Choice::FullCores) && !count.is_multiple_of(per_core) {
            return Err(Error::Threads { requested: count, per_core });
        }
        let taken = self.take(count, left, nodes)?;
        self.entries.entry(pod.to_owned()).or_default().insert(container.to_owned(), taken);
        Ok(true)
    }

    fn take(&self, count: usize, left: &Set, nodes: Option<Mask>) -> Result<Set, Error> {
        let free = self.free(left);
        let available = free.len();
        if available < count {
            return Err(match self.options.has(Choice::FullCores) {
                true => {
                    let per_core = topology::per_core(&self.topology);
                    Error::Cores { available, requested: count, per_core }
                }
                false => Error::Processors { requested: count, available },
            });
        }
        let sockets = nodes.filter(|_| self.options.has(Choice::BySocket)).map(|mask| self.sockets(mask));
        let near = |cpu: &u32| {
            let Some(place) = self.topology.get(cpu) else { return true };
            match &sockets {
                Some(sockets) => sockets.contains(&place.socket),
                None => nodes.is_none_or(|mask| mask.has(place.node)),
            }
        };
        let (aligned, others): (Set, Set) = free.iter().partition(|cpu| near(cpu));
        let own: Set = aligned.intersection(left).copied().collect();
        let take = |from: &Set, count| topology::take(&self.topology, from, count, &self.options);
        let first = count.min(aligned.len());
        let mut taken = take(&own, first).or_else(|| take(&aligned, first)).unwrap_or_default();
        taken.extend(take(&others, count.saturating_sub(first)).into_iter().flatten());
        match taken.len() == count {
            true => Ok(taken),
            false => Err(Error::Processors { requested: count, available }),
        }
    }
}

impl checkpoint::Ledger for Ledger {
    const MANAGER: &'static str = "CPU manager";
    type Share = Set;

    fn entries(&self) -> &Entries<Self::Share> {
        &self.entries
    }

    fn entries_mut(&mut self) -> &mut Entries<Self::Share> {
        &mut self.entries
    }

    fn read(&mut self, path: &Path) -> Result<(), String> {
        let checkpoint = state(path);
        let Some(file) = checkpoint.read::<File>()? else { return Ok(()) };
        for (pod, containers) in file.entries {
            for (container, words) in containers {
                let set = set::parse(&words).map_err(|why| checkpoint.failed(why))?;
                if !set.iter().all(|cpu| self.topology.contains_key(cpu) && !self.reserved.contains(cpu)) {
                    let why = format!("container {container} has the processors {words}");
                    return Err(checkpoint.failed(why));
                }
                self.entries.entry(pod.clone()).or_default().insert(container, set);
            }
        }
        Ok(())
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let entries = self.entries.iter().map(|(pod, containers)| {
            (pod.clone(), containers.iter().map(|(name, cpus)| (name.clone(), set::words(cpus))).collect())
        });
        let file = File {
            policy_name: STATIC.to_owned(),
            default_cpu_set: set::words(&self.shared()),
            entries: entries.collect(),
        };
        state(path).write(file)
    }
}

fn state(path: &Path) -> Checkpoint<'_> {
    Checkpoint { path, manager: <Ledger as checkpoint::Ledger>::MANAGER, policy: STATIC }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Ledger as _;
    use crate::cpus::topology::Place;

    fn ledger() -> Ledger {
        let topology = (0..6).map(|cpu| (cpu, Place { core: cpu / 2, ..Place::default() })).collect();
        Ledger { topology, reserved: Set::from([0]), ..Ledger::default() }
    }

    fn has(ledger: &Ledger, pod: &str, container: &str) -> String {
        ledger.entries.get(pod).and_then(|c| c.get(container)).map(set::words).unwrap_or_default()
    }

    /// Gives to one of the containers of a pod, each with whether it ends before the next begins.
    fn give(
        ledger: &mut Ledger,
        pod: &str,
        order: &[(&str, bool)],
        at: usize,
        count: usize,
    ) -> Result<bool, Error> {
        let left = ledger.left(pod, &order[..at]);
        ledger.give((pod, order[at].0), count, &left, None)
    }

    #[test]
    fn containers_get_processors_of_their_own() {
        let mut ledger = ledger();
        let order = [("init", true), ("main", false)];
        assert_eq!(give(&mut ledger, "p", &order, 0, 2), Ok(true));
        assert_eq!(
            (has(&ledger, "p", "init"), set::words(&ledger.shared())),
            ("2-3".into(), "0-1,4-5".into())
        );
        // Asked again, it has the same; its main container has those too, and one more where it needs more.
        assert_eq!(give(&mut ledger, "p", &order, 0, 2), Ok(false));
        assert_eq!(give(&mut ledger, "p", &order, 1, 3), Ok(true));
        assert_eq!((has(&ledger, "p", "init"), has(&ledger, "p", "main")), ("2-3".into(), "1-3".into()));
        let main = [("main", false)];
        let lacking = Error::Processors { requested: 3, available: 2 };
        assert_eq!(give(&mut ledger, "q", &main, 0, 3), Err(lacking));
        // Processor 0 is reserved: it is shared, and nobody's own.
        assert_eq!(give(&mut ledger, "q", &main, 0, 2), Ok(true));
        assert_eq!(set::words(&ledger.shared()), "0");
        ledger.entries.remove("q");
        assert_eq!(ledger.shared().len(), 3);
    }

    #[test]
    fn init_containers_take_turns() {
        // Each of them asks for 3 of the 5 that there are; one that shares needs nothing.
        let mut ledger = ledger();
        let order = [("one", true), ("two", true), ("none", false), ("main", false)];
        assert_eq!(give(&mut ledger, "p", &order, 0, 3), Ok(true));
        assert_eq!(give(&mut ledger, "p", &order, 1, 3), Ok(true));
        assert_eq!(give(&mut ledger, "p", &order, 2, 0), Ok(false));
        assert_eq!(give(&mut ledger, "p", &order, 3, 3), Ok(true));
        assert_eq!((has(&ledger, "p", "main"), ledger.shared().len()), (has(&ledger, "p", "one"), 3));
    }

    #[test]
    fn sidecars_keep_theirs_beside_those_after_them() {
        let mut ledger = ledger();
        let order = [("init", true), ("sidecar", false), ("next", true), ("main", false)];
        for (at, count) in [(0, 2), (1, 1), (2, 2), (3, 2)] {
            assert_eq!(give(&mut ledger, "p", &order, at, count), Ok(true), "{at}");
        }
        let of = |name: &str| ledger.entries["p"][name].clone();
        assert!(of("init").is_superset(&of("sidecar")));
        assert!(of("main").is_disjoint(&of("sidecar")) && of("next").is_disjoint(&of("sidecar")));
        assert!(of("main").is_subset(&of("init").union(&of("next")).copied().collect()));
    }

    #[test]
    fn processors_are_of_the_nodes_that_were_chosen() {
        // Two nodes of four.
        let place = |cpu| Place { node: cpu / 4, core: cpu / 2, ..Place::default() };
        let topology = (0..8).map(|cpu| (cpu, place(cpu))).collect();
        let mut ledger = Ledger { topology, reserved: Set::from([0]), ..Ledger::default() };
        let hint =
            |nodes: &[u32], preferred| Hint { nodes: Some(Mask::of(nodes.iter().copied())), preferred };
        let none = Set::new();
        assert_eq!(ledger.hints(4, &none), [hint(&[1], true), hint(&[0, 1], false)]);
        assert_eq!(ledger.hints(2, &none), [hint(&[0], true), hint(&[1], true), hint(&[0, 1], false)]);
        assert_eq!(ledger.hints(5, &none), [hint(&[0, 1], true)]);
        assert_eq!(ledger.hints(8, &none), []);
        assert_eq!(ledger.give(("p", "a"), 2, &none, Some(Mask::of([1]))), Ok(true));
        assert_eq!(has(&ledger, "p", "a"), "4-5");
        // More than that node has: the others are of elsewhere.
        assert_eq!(ledger.give(("p", "b"), 3, &none, Some(Mask::of([1]))), Ok(true));
        assert_eq!(has(&ledger, "p", "b"), "1,6-7");
    }

    #[test]
    fn whole_cores_are_given_or_nothing() {
        // Cores of two; processor 0 is reserved, so that nobody gets processor 1.
        let mut ledger = Ledger { options: Options::of([Choice::FullCores]), ..ledger() };
        let main = [("main", false)];
        let refused = give(&mut ledger, "p", &main, 0, 3).expect_err("half a core");
        assert_eq!(
            refused.to_string(),
            "SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2"
        );
        assert_eq!(give(&mut ledger, "p", &main, 0, 2), Ok(true));
        let refused = give(&mut ledger, "q", &main, 0, 4).expect_err("one core is left");
        assert_eq!(
            refused.to_string(),
            "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, \
             CPUs per core = 2"
        );
        assert_eq!(give(&mut ledger, "q", &main, 0, 2), Ok(true));
        assert_eq!((has(&ledger, "p", "main"), has(&ledger, "q", "main")), ("2-3".into(), "4-5".into()));
        assert_eq!(set::words(&ledger.shared()), "0-1");
    }

    #[test]
    fn nobody_runs_on_what_is_strictly_reserved() {
        let mut ledger = Ledger { options: Options::of([Choice::Strict]), ..ledger() };
        assert_eq!(set::words(&ledger.shared()), "1-5");
        assert_eq!(give(&mut ledger, "p", &[("main", false)], 0, 2), Ok(true));
        assert_eq!((has(&ledger, "p", "main"), set::words(&ledger.shared())), ("2-3".into(), "1,4-5".into()));
    }

    #[test]
    fn near_is_what_is_of_the_same_socket() {
        // Two sockets of two nodes of two processors.
        let place = |cpu| Place { node: cpu / 2, core: cpu, socket: cpu / 4, cache: None };
        let topology: Topology = (0..8).map(|cpu| (cpu, place(cpu))).collect();
        let of = |choices: &[Choice]| Ledger {
            topology: topology.clone(),
            options: Options::of(choices.iter().copied()),
            ..Ledger::default()
        };
        let preferred = |ledger: &Ledger| -> Vec<Vec<u32>> {
            let hints = ledger.hints(2, &Set::new()).into_iter().filter(|hint| hint.preferred);
            hints.filter_map(|hint| hint.nodes).map(|mask| mask.nodes().collect()).collect()
        };
        let (mut plain, mut socket) = (of(&[]), of(&[Choice::BySocket]));
        assert_eq!(preferred(&plain), [vec![0], vec![1], vec![2], vec![3]]);
        assert_eq!(preferred(&socket), [vec![0], vec![1], vec![0, 1], vec![2], vec![3], vec![2, 3]]);
        // One of node 0 is taken: the second one is of its socket, not of anywhere.
        let near = Some(Mask::of([0]));
        for ledger in [&mut plain, &mut socket] {
            assert_eq!(ledger.give(("p", "a"), 1, &Set::new(), near), Ok(true));
            assert_eq!(ledger.give(("p", "b"), 2, &Set::new(), near), Ok(true));
        }
        assert_eq!((has(&plain, "p", "b"), has(&socket, "p", "b")), ("1-2".into(), "2-3".into()));
    }

    #[test]
    fn what_was_given_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cpu_manager_state");
        let mut before = ledger();
        before.give(("p", "main"), 2, &Set::new(), None).expect("given");
        before.write(&path).expect("written");
        let mut after = ledger();
        after.read(&path).expect("read");
        assert_eq!(after, before);
        let text = std::fs::read_to_string(&path).expect("text");
        let expected = r#"{"policyName":"static","defaultCpuSet":"0-1,4-5","entries":{"p":{"main":"2-3"}}}"#;
        assert_eq!(text, expected);
        // Another policy's, or of a machine that had more processors: the node says what to do.
        for (from, to) in [("static", "none"), ("2-3", "7"), ("2-3", "0"), ("{", "")] {
            std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
            let refused = ledger().read(&path).expect_err(to);
            assert!(refused.contains("drain this node and delete the CPU manager checkpoint"), "{refused}");
        }
    }
}
