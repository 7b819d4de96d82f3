//! Pure, but for its file: which containers have processors of their own (the kubelet's static CPU manager policy).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::set::{self, Set};
use super::topology::{self, Topology};
use crate::checkpoint::Checkpoint;
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

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// The machine's processors.
    pub topology: Topology,
    /// Never anybody's own.
    pub reserved: Set,
    /// By pod and container.
    pub entries: BTreeMap<String, BTreeMap<String, Set>>,
}

impl Ledger {
    /// What all containers share that have none of their own.
    pub fn shared(&self) -> Set {
        let own: Set = self.entries.values().flat_map(BTreeMap::values).flatten().copied().collect();
        self.topology.keys().copied().filter(|cpu| !own.contains(cpu)).collect()
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
        hints::counted(self.mask(), count, there, |mask| free.iter().filter(|cpu| on(mask, cpu)).count())
    }

    fn free(&self, left: &Set) -> Set {
        left.iter().copied().chain(self.shared().difference(&self.reserved).copied()).collect()
    }

    /// Gives a container processors of its own, for as long as its pod is there: first of what is `left` of the pod's own,
    /// of these nodes as far as they have any. What it has, it keeps. Returns whether anything changed.
    ///
    /// # Errors
    /// When there are not enough, in the kubelet's words; nothing changed then.
    pub fn give(
        &mut self,
        (pod, container): (&str, &str),
        count: usize,
        left: &Set,
        nodes: Option<Mask>,
    ) -> Result<bool, String> {
        let has = self.entries.get(pod).and_then(|c| c.get(container)).map_or(0, Set::len);
        if count == 0 || has == count {
            return Ok(false);
        }
        let taken = self.take(count, left, nodes)?;
        self.entries.entry(pod.to_owned()).or_default().insert(container.to_owned(), taken);
        Ok(true)
    }

    fn take(&self, count: usize, left: &Set, nodes: Option<Mask>) -> Result<Set, String> {
        let free = self.free(left);
        let near = |cpu: &u32| {
            let place = self.topology.get(cpu);
            place.is_none_or(|place| nodes.is_none_or(|mask| mask.has(place.node)))
        };
        let (aligned, others): (Set, Set) = free.iter().partition(|cpu| near(cpu));
        let own: Set = aligned.intersection(left).copied().collect();
        let first = count.min(aligned.len());
        let taken = topology::take(&self.topology, &own, first);
        let mut taken = taken.or_else(|| topology::take(&self.topology, &aligned, first)).unwrap_or_default();
        taken.extend(
            topology::take(&self.topology, &others, count.saturating_sub(first)).into_iter().flatten(),
        );
        if taken.len() == count {
            return Ok(taken);
        }
        let available = free.len();
        Err(format!("not enough cpus available to satisfy request: requested={count}, available={available}"))
    }

    /// Takes back what pods and containers have that are not to be kept. Returns whether anything changed.
    pub fn retain(&mut self, keep: impl Fn(&str, &str) -> bool) -> bool {
        let before = self.entries.clone();
        for (pod, containers) in &mut self.entries {
            containers.retain(|name, _| keep(pod, name));
        }
        self.entries.retain(|_, containers| !containers.is_empty());
        self.entries != before
    }

    /// What was written last is read into the ledger.
    ///
    /// # Errors
    /// When the file is none of this policy, or of another machine: containers may have processors that this ledger would
    /// give to others.
    pub fn read(&mut self, path: &Path) -> Result<(), String> {
        let checkpoint = checkpoint(path);
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

    /// On disk when this returns.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let entries = self.entries.iter().map(|(pod, containers)| {
            (pod.clone(), containers.iter().map(|(name, cpus)| (name.clone(), set::words(cpus))).collect())
        });
        let file = File {
            policy_name: STATIC.to_owned(),
            default_cpu_set: set::words(&self.shared()),
            entries: entries.collect(),
        };
        checkpoint(path).write(file)
    }
}

fn checkpoint(path: &Path) -> Checkpoint<'_> {
    Checkpoint { path, manager: "CPU manager", policy: STATIC }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpus::topology::Place;

    fn ledger() -> Ledger {
        let topology = (0..6).map(|cpu| (cpu, Place { node: 0, core: cpu / 2 })).collect();
        Ledger { topology, reserved: Set::from([0]), entries: BTreeMap::new() }
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
    ) -> Result<bool, String> {
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
        let words = "not enough cpus available to satisfy request: requested=3, available=2";
        let main = [("main", false)];
        assert_eq!(give(&mut ledger, "q", &main, 0, 3), Err(words.into()));
        // Processor 0 is reserved: it is shared, and nobody's own.
        assert_eq!(give(&mut ledger, "q", &main, 0, 2), Ok(true));
        assert_eq!(set::words(&ledger.shared()), "0");
        assert!(ledger.retain(|pod, _| pod == "p"));
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
        let topology = (0..8).map(|cpu| (cpu, Place { node: cpu / 4, core: cpu / 2 })).collect();
        let mut ledger = Ledger { topology, reserved: Set::from([0]), entries: BTreeMap::new() };
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
