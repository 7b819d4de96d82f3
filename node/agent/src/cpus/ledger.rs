//! Pure, but for its file: which containers have processors of their own (the kubelet's static CPU manager policy).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::set::{self, Set};
use super::topology::{self, Topology};

/// The largest checkpoint that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The policy's name in the checkpoint.
pub const STATIC: &str = "static";

/// The file's form is the kubelet's, without its checksum.
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

    /// Gives a container processors of its own, or none; what it has, it keeps. Containers of the pod that never run at the
    /// same time (`apart`) leave theirs to it: they are given some again when they run again. Returns whether anything
    /// changed.
    ///
    /// # Errors
    /// When there are not enough, in the kubelet's words; nothing changed then.
    pub fn give(&mut self, pod: &str, container: &str, count: usize, apart: &[&str]) -> Result<bool, String> {
        let before = self.entries.get(pod).cloned().unwrap_or_default();
        let mut after = before.clone();
        after.retain(|name, _| name != container && !apart.contains(&name.as_str()));
        let taken = match before.get(container) {
            Some(has) if has.len() == count => has.clone(),
            _ => self.take(&before, &after, count)?,
        };
        if !taken.is_empty() {
            after.insert(container.to_owned(), taken);
        }
        let changed = before != after;
        if after.is_empty() {
            self.entries.remove(pod);
        } else {
            self.entries.insert(pod.to_owned(), after);
        }
        Ok(changed)
    }

    /// First of what a pod has `before` and not `after`: nobody else's processors are touched then.
    fn take(
        &self,
        before: &BTreeMap<String, Set>,
        after: &BTreeMap<String, Set>,
        count: usize,
    ) -> Result<Set, String> {
        let kept: Set = after.values().flatten().copied().collect();
        let left: Set = before.values().flatten().copied().filter(|cpu| !kept.contains(cpu)).collect();
        let free = left.iter().copied().chain(self.shared().difference(&self.reserved).copied()).collect();
        let taken = topology::take(&self.topology, &left, count);
        taken.or_else(|| topology::take(&self.topology, &free, count)).ok_or_else(|| {
            let available = free.len();
            format!("not enough cpus available to satisfy request: requested={count}, available={available}")
        })
    }

    /// Takes back what pods have that are gone. Returns whether anything changed.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|pod, _| keep(pod));
        self.entries.len() != before
    }

    /// What was written last is read into the ledger.
    ///
    /// # Errors
    /// When the file is none of this policy, or of another machine: containers may have processors that this ledger would
    /// give to others.
    pub fn read(&mut self, path: &Path) -> Result<(), String> {
        let failed = |why: String| {
            format!(
                "could not restore state from checkpoint: {why}, please drain this node and delete the CPU manager \
                 checkpoint file {} before restarting the node agent",
                path.display()
            )
        };
        let text = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(found) if found.len() > MAX_BYTES => return Err(failed("the file is too large".into())),
            _ => std::fs::read(path).map_err(|e| failed(e.to_string()))?,
        };
        let file: File = serde_json::from_slice(&text).map_err(|e| failed(e.to_string()))?;
        if file.policy_name != STATIC {
            let words = format!(
                "configured policy {STATIC:?} differs from state checkpoint policy {:?}",
                file.policy_name
            );
            return Err(failed(words));
        }
        for (pod, containers) in file.entries {
            for (container, words) in containers {
                let set = set::parse(&words).map_err(&failed)?;
                if !set.iter().all(|cpu| self.topology.contains_key(cpu) && !self.reserved.contains(cpu)) {
                    return Err(failed(format!("container {container} has the processors {words}")));
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
        let fresh = path.with_extension("new");
        let mut target = std::fs::File::create(&fresh)?;
        target.write_all(&serde_json::to_vec(&file)?)?;
        target.sync_all()?;
        std::fs::rename(&fresh, path)
    }
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

    #[test]
    fn containers_get_processors_of_their_own() {
        let mut ledger = ledger();
        assert_eq!(ledger.give("p", "init", 2, &[]), Ok(true));
        assert_eq!(
            (has(&ledger, "p", "init"), set::words(&ledger.shared())),
            ("2-3".into(), "0-1,4-5".into())
        );
        // Restarted, it has the same; its main container takes them over, and one more where it needs more.
        assert_eq!(ledger.give("p", "init", 2, &[]), Ok(false));
        assert_eq!(ledger.give("p", "main", 3, &["init"]), Ok(true));
        assert_eq!((has(&ledger, "p", "init"), has(&ledger, "p", "main")), (String::new(), "1-3".into()));
        let words = "not enough cpus available to satisfy request: requested=3, available=2";
        assert_eq!(ledger.give("q", "main", 3, &[]), Err(words.into()));
        // Processor 0 is reserved: it is shared, and nobody's own.
        assert_eq!(ledger.give("q", "main", 2, &[]), Ok(true));
        assert_eq!(set::words(&ledger.shared()), "0");
        assert!(ledger.retain(|pod| pod == "p"));
        assert_eq!(ledger.shared().len(), 3);
    }

    #[test]
    fn init_containers_take_turns() {
        // Each of them asks for 3 of the 5 that there are.
        let mut ledger = ledger();
        assert_eq!(ledger.give("p", "one", 3, &["two", "main"]), Ok(true));
        let first = has(&ledger, "p", "one");
        assert_eq!(ledger.give("p", "two", 3, &["one", "main"]), Ok(true));
        assert_eq!(ledger.give("p", "main", 3, &["one", "two"]), Ok(true));
        assert_eq!((has(&ledger, "p", "main"), ledger.shared().len()), (first, 3));
    }

    #[test]
    fn a_pod_that_begins_anew_has_what_it_had() {
        let mut ledger = ledger();
        ledger.give("p", "main", 3, &["init"]).expect("given");
        let first = has(&ledger, "p", "main");
        assert_eq!(ledger.give("p", "init", 3, &["main"]), Ok(true));
        assert_eq!(ledger.give("p", "main", 3, &["init"]), Ok(true));
        assert_eq!((has(&ledger, "p", "main"), ledger.shared().len()), (first, 3));
        assert_eq!(ledger.give("p", "main", 3, &["init"]), Ok(false));
    }

    #[test]
    fn what_only_an_init_container_needs_is_given_back() {
        let mut ledger = ledger();
        ledger.give("p", "sidecar", 1, &[]).expect("given");
        ledger.give("p", "main", 1, &["init"]).expect("given");
        ledger.give("p", "init", 4, &["main"]).expect("given");
        let words = "not enough cpus available to satisfy request: requested=5, available=4";
        let before = ledger.clone();
        assert_eq!((ledger.give("p", "main", 5, &["init"]), &ledger), (Err(words.into()), &before));
        assert_eq!(ledger.give("p", "main", 1, &["init"]), Ok(true));
        assert_eq!(ledger.shared().len(), 4);
        // One that shares needs nothing, and takes nothing over.
        ledger.give("p", "init", 4, &["main"]).expect("given");
        assert_eq!(ledger.give("p", "main", 0, &["init"]), Ok(true));
        assert_eq!((ledger.shared().len(), has(&ledger, "p", "sidecar").len()), (5, 1));
        assert_eq!((ledger.give("q", "main", 0, &[]), ledger.entries.len()), (Ok(false), 1));
    }

    #[test]
    fn what_was_given_is_found_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cpu_manager_state");
        let mut before = ledger();
        before.give("p", "main", 2, &[]).expect("given");
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
