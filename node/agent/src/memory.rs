//! Memory of chosen memory nodes for containers of pods of class Guaranteed: the kubelet's static memory manager policy.
//! Wasm containers lie in their host's memory, wherever that is.

use std::collections::BTreeMap;
use std::path::Path;

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::checkpoint::Kept;
use crate::cpus::set;

pub mod ledger;
pub mod machine;

use ledger::Ledger;
use machine::{Amounts, MEMORY, is_memory};

use crate::numa::hints::{Hint, Offers};
use crate::tuning::Tuning;

/// What an operator set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// All have memory of wherever it is.
    #[default]
    None,
    /// Guaranteed pods have theirs of chosen nodes.
    Static,
}

/// What is not for containers, by memory node.
pub type Reserved = BTreeMap<u32, Amounts>;

/// Reads `0:memory=1Gi,hugepages-2Mi=64Mi`; more nodes after a `;`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<Reserved, String> {
    let mut all = Reserved::new();
    for part in text.split(';').map(str::trim).filter(|p| !p.is_empty()) {
        let wrong = || format!("invalid format of {part:?}: it is not NODE:TYPE=AMOUNT,TYPE=AMOUNT");
        let (node, amounts) = part.split_once(':').ok_or_else(wrong)?;
        let node: u32 = node.trim().parse().map_err(|_| wrong())?;
        if all.contains_key(&node) {
            return Err(format!("invalid format: memory node {node} is named twice"));
        }
        let mut of = Amounts::new();
        for pair in amounts.split(',') {
            let (name, amount) = pair.trim().split_once('=').ok_or_else(wrong)?;
            if !is_memory(name) {
                return Err(format!("memory type {name:?} is neither memory nor hugepages-SIZE"));
            }
            let amount = Quantity::parse(amount).map_err(|e| format!("{pair:?}: {e}"))?.value();
            let amount = u64::try_from(amount).ok().filter(|bytes| *bytes > 0);
            let amount = amount.ok_or_else(|| format!("{pair:?}: it has to be more than nothing"))?;
            if of.insert(name.to_owned(), amount).is_some() {
                return Err(format!("invalid format: {name} of memory node {node} is named twice"));
            }
        }
        all.insert(node, of);
    }
    Ok(all)
}

/// The shortest words for bytes: `100Mi`.
pub fn words(bytes: u64) -> String {
    let units = [("Gi", 30), ("Mi", 20), ("Ki", 10)];
    let unit = units.iter().find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1_u64 << shift));
    unit.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// Who has memory of which nodes. Without the static policy it has nothing to say.
pub type Memory = Kept<Ledger>;

/// Pure: whether what is reserved by node is what is kept from pods in all (`kept`, bytes).
fn check(machine: &BTreeMap<u32, Amounts>, reserved: &Reserved, kept: u64) -> Result<(), String> {
    if let Some(node) = reserved.keys().find(|node| !machine.contains_key(node)) {
        return Err(format!(
            "the reserved memory configuration references a NUMA node {node} that does not exist on this machine"
        ));
    }
    let sum = reserved.values().filter_map(|of| of.get(MEMORY)).fold(0_u64, |a, b| a.saturating_add(*b));
    if sum != kept {
        let (sum, kept) = (words(sum), words(kept));
        return Err(format!(
            "the total amount {sum:?} of type \"memory\" is not equal to the value {kept:?} determined by Node \
             Allocatable feature (--kube-reserved, --system-reserved and --eviction-hard)"
        ));
    }
    if sum == 0 {
        return Err("you should specify the system reserved memory".to_owned());
    }
    for (node, amounts) in reserved {
        let has = |name: &str| machine.get(node).and_then(|of| of.get(name)).copied().unwrap_or(0);
        if let Some((name, _)) = amounts.iter().find(|(name, bytes)| has(name) < **bytes) {
            return Err(format!("memory node {node} has less {name} than is reserved of it"));
        }
    }
    Ok(())
}

impl Memory {
    /// Over the checkpoint in the agent's root directory. Pods may not have `kept` bytes of this machine.
    ///
    /// # Errors
    /// When what is reserved is not what is kept from pods, the machine has too many memory nodes, or the checkpoint is not
    /// of this node.
    pub fn new(
        root: &Path,
        tuning: &Tuning,
        machine: &BTreeMap<u32, Amounts>,
        kept: u64,
    ) -> Result<Self, String> {
        if tuning.memory == Policy::None {
            return Ok(Self::default());
        }
        let (machine, reserved) = (machine.clone(), tuning.reserved_memory.clone());
        let most = tuning.topology.options.most;
        if machine.len() > most {
            return Err(format!("unsupported on machines with more than {most} NUMA Nodes"));
        }
        check(&machine, &reserved, kept)?;
        let ledger = Ledger { machine, reserved, entries: BTreeMap::new() };
        Self::open(root.join("memory_manager_state"), ledger)
    }

    /// See [`Ledger::offers`].
    pub fn offers(&self, pod: &str, wanted: &Amounts, ended: &[&str]) -> Offers {
        self.ask(|ledger| ledger.offers(pod, wanted, ended)).unwrap_or_default()
    }

    /// See [`Ledger::give`]. It is on disk when [`Self::commit`] returns.
    ///
    /// # Errors
    /// When there is not enough, in the kubelet's words.
    pub fn give(
        &self,
        of: (&str, &str),
        wanted: &Amounts,
        ended: &[&str],
        hint: Hint,
    ) -> Result<bool, String> {
        self.change(|ledger| ledger.give(of, wanted, ended, hint))
    }

    /// The nodes of a container's memory, in the kernel's words.
    pub fn nodes(&self, pod: &str, container: &str) -> Option<String> {
        let mask = self.ask(|ledger| ledger.of(pod, container)).flatten()?;
        Some(set::words(&mask.nodes().collect()))
    }
}

/// Bytes of memory and huge pages that a container asks for, in a pod of class Guaranteed.
pub fn wanted(pod: &Pod, spec: &Container) -> Amounts {
    let class = pod.status.as_ref().and_then(|s| s.qos_class.as_deref());
    let of_pod = pod.spec.as_ref().is_some_and(|s| s.resources.is_some());
    if class != Some("Guaranteed") || of_pod {
        return Amounts::new();
    }
    let asked = spec.resources.iter().flat_map(|r| r.requests.iter().flatten());
    let bytes = asked.filter(|(name, _)| is_memory(name)).filter_map(|(name, amount)| {
        let bytes = u64::try_from(Quantity::parse(&amount.0).ok()?.value()).ok()?;
        Some((name.clone(), bytes)).filter(|_| bytes > 0)
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_are_by_node() {
        let all = parse("0:memory=1Gi,hugepages-2Mi=4Mi;1:memory=512Mi").expect("amounts");
        assert_eq!(all[&0], Amounts::from([("memory".into(), 1 << 30), ("hugepages-2Mi".into(), 4 << 20)]));
        assert_eq!((all[&1]["memory"], parse("").expect("none").len()), (512 << 20, 0));
        for wrong in [
            "memory=1Gi",
            "0:memory",
            "a:memory=1",
            "0:cpu=1",
            "0:memory=0",
            "0:memory=1;0:memory=1",
            "0:memory=1,memory=2",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_reserved_is_what_pods_may_not_have() {
        let of = |bytes: u64| Amounts::from([(MEMORY.to_owned(), bytes)]);
        let machine = BTreeMap::from([(0, of(4 << 30)), (1, of(4 << 30))]);
        let check = |reserved: &[(u32, u64)], kept| {
            check(&machine, &reserved.iter().map(|(node, bytes)| (*node, of(*bytes))).collect(), kept)
        };
        assert_eq!(check(&[(0, 1 << 30), (1, 1 << 20)], (1 << 30) + (1 << 20)), Ok(()));
        let words = check(&[(0, 1 << 30)], 100 << 20).expect_err("not equal");
        assert!(
            words.starts_with(
                "the total amount \"1Gi\" of type \"memory\" is not equal to the value \"100Mi\""
            ),
            "{words}"
        );
        assert!(
            check(&[(2, 1)], 1)
                .expect_err("no node")
                .contains("references a NUMA node 2 that does not exist")
        );
        assert_eq!(check(&[], 0), Err("you should specify the system reserved memory".into()));
        assert!(check(&[(0, 5 << 30)], 5 << 30).is_err());
    }
}
