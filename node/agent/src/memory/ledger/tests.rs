use super::*;
use crate::checkpoint::Ledger as _;

const GI: u64 = 1 << 30;

fn amounts(list: &[(&str, u64)]) -> Amounts {
    list.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
}

/// Nodes of 10Gi; on node 0 1Gi is reserved, and 2Gi are huge pages.
fn machine(nodes: u32) -> Ledger {
    let one = |id| match id {
        0 => amounts(&[("memory", 10 * GI), ("hugepages-1Gi", 2 * GI)]),
        _ => amounts(&[("memory", 10 * GI)]),
    };
    let reserved = BTreeMap::from([(0, amounts(&[("memory", GI)]))]);
    Ledger { machine: (0..nodes).map(|id| (id, one(id))).collect(), reserved, entries: BTreeMap::new() }
}

fn on(nodes: &[u32]) -> Hint {
    Hint { nodes: Some(Mask::of(nodes.iter().copied())), preferred: true }
}

fn give(ledger: &mut Ledger, pod: &str, gi: u64, hint: Hint) -> Result<Vec<u32>, String> {
    ledger.give((pod, "c"), &amounts(&[("memory", gi * GI)]), &[], hint)?;
    Ok(ledger.of(pod, "c").expect("nodes").nodes().collect())
}

fn free(ledger: &Ledger) -> Vec<u64> {
    ledger.nodes().values().map(|node| node.free(MEMORY) / GI).collect()
}

#[test]
fn memory_is_given_of_one_node_where_it_fits() {
    let mut ledger = machine(2);
    assert_eq!(free(&ledger), [7, 10]);
    assert_eq!(give(&mut ledger, "a", 6, Hint::default()), Ok(vec![0]));
    assert_eq!(give(&mut ledger, "b", 6, Hint::default()), Ok(vec![1]));
    assert_eq!(free(&ledger), [1, 4]);
    // Five are free in all, and no node has them; nodes that give alone are no group.
    let words = "[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
    assert_eq!(give(&mut ledger, "c", 5, Hint::default()), Err(words.into()));
    assert_eq!(give(&mut ledger, "c", 4, Hint::default()), Ok(vec![1]));
    assert_eq!(give(&mut ledger, "a", 6, Hint::default()), Ok(vec![0]));
    ledger.entries.remove("b");
    assert_eq!(free(&ledger), [1, 6]);
}

#[test]
fn groups_of_nodes_stay_groups() {
    let mut ledger = machine(4);
    // More than one node has.
    assert_eq!(give(&mut ledger, "wide", 12, Hint::default()), Ok(vec![0, 1]));
    assert_eq!(free(&ledger), [0, 5, 10, 10]);
    // What fits one node is not of the group, whatever is free there.
    assert_eq!(give(&mut ledger, "small", 2, Hint::default()), Ok(vec![2]));
    assert_eq!(
        give(&mut ledger, "wide too", 11, Hint::default()).map_err(|e| e.contains("no NUMA nodes")),
        Err(true)
    );
    let words = "[memorymanager] preferred hint violates NUMA node allocation";
    assert_eq!(give(&mut ledger, "there", 1, on(&[1])), Err(words.into()));
    ledger.entries.remove("wide");
    assert_eq!(give(&mut ledger, "there", 1, on(&[1])), Ok(vec![1]));
}

#[test]
fn what_was_chosen_is_widened_where_it_is_too_little() {
    let mut ledger = machine(2);
    let chosen = Hint { nodes: Some(Mask::of([0])), preferred: false };
    assert_eq!(give(&mut ledger, "a", 8, chosen), Ok(vec![0, 1]));
    let words = "[memorymanager] failed to find NUMA nodes to extend the current topology hint";
    assert_eq!(give(&mut ledger, "b", 17, on(&[0])), Err(words.into()));
}

#[test]
fn offers_are_the_same_for_all_resources() {
    let ledger = machine(2);
    let offers = ledger.offers("p", &amounts(&[("memory", GI), ("hugepages-1Gi", GI)]), &[]);
    let hints = vec![on(&[0]), Hint { preferred: false, ..on(&[0, 1]) }];
    assert_eq!(
        offers,
        Offers::from([("hugepages-1Gi".into(), Some(hints.clone())), ("memory".into(), Some(hints))])
    );
    assert_eq!(ledger.offers("p", &amounts(&[("memory", 18 * GI)]), &[]), Offers::new());
}

#[test]
fn containers_use_what_init_containers_leave() {
    let mut ledger = machine(1);
    let mut give = |name: &str, gi: u64, ended: &[&str]| {
        let given = ledger.give(("p", name), &amounts(&[("memory", gi * GI)]), ended, Hint::default());
        given.map(|_| free(&ledger)[0])
    };
    assert_eq!(give("one", 5, &[]), Ok(2));
    assert_eq!(give("two", 6, &["one"]), Ok(1));
    assert_eq!(give("sidecar", 2, &["one", "two"]), Ok(1));
    assert_eq!(give("main", 5, &["one", "two"]), Ok(0));
    assert_eq!(give("late", 1, &["one", "two"]), Err("[memorymanager] failed to get the default NUMA affinity, no NUMA nodes with enough memory is available".into()));
}

#[test]
fn what_was_given_is_found_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("memory_manager_state");
    let mut before = machine(1);
    give(&mut before, "p", 2, Hint::default()).expect("given");
    before.write(&path).expect("written");
    let mut after = machine(1);
    after.read(&path).expect("read");
    assert_eq!(after, before);
    let text = std::fs::read_to_string(&path).expect("text");
    let expected = concat!(
        r#"{"policyName":"Static","machineState":{"0":{"numberOfAssignments":1,"memoryMap":{"#,
        r#""hugepages-1Gi":{"total":2147483648,"systemReserved":0,"allocatable":2147483648,"reserved":0,"free":2147483648},"#,
        r#""memory":{"total":10737418240,"systemReserved":1073741824,"allocatable":7516192768,"reserved":2147483648,"free":5368709120}},"#,
        r#""cells":[0]}},"entries":{"p":{"c":[{"numaAffinity":[0],"type":"memory","size":2147483648}]}}}"#
    );
    assert_eq!(text, expected);
    // Another policy's, or of a machine with other memory: the node says what to do.
    for (from, to) in [
        ("Static", "None"),
        ("\"numaAffinity\":[0]", "\"numaAffinity\":[1]"),
        ("10737418240", "1073741824"),
        ("{", ""),
    ] {
        std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
        let refused = machine(1).read(&path).expect_err(to);
        assert!(refused.contains("drain this node and delete the memory manager checkpoint"), "{refused}");
    }
}
