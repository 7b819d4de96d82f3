//! On machines that are made up: what the kernel would tell of them lies in a folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_devices::plugin::{self, Describe};
use coracle_devices::v1beta1::{ContainerAllocateResponse, Device, NumaNode, TopologyInfo};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cpus::{ledger, set, topology};
use crate::memory::{ledger as memories, machine};

const GI: u64 = 1 << 30;
const THING: &str = "test.dev/thing";

/// Nodes of four processors (two cores) and 8Gi, in the kernel's files.
fn sysfs(dir: &Path, nodes: u32) {
    let write = |path: String, text: String| {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    };
    write("cpu/online".into(), format!("0-{}\n", nodes * 4 - 1));
    write("node/online".into(), format!("0-{}\n", nodes - 1));
    for cpu in 0..nodes * 4 {
        let core = cpu / 2 * 2;
        let siblings = format!("cpu/cpu{cpu}/topology/thread_siblings_list");
        write(siblings, format!("{core}-{}\n", core + 1));
    }
    for node in 0..nodes {
        write(format!("node/node{node}/cpulist"), format!("{}-{}\n", node * 4, node * 4 + 3));
        write(format!("node/node{node}/meminfo"), format!("Node {node} MemTotal: {} kB\n", 8 << 20));
    }
}

struct Machine {
    dir: tempfile::TempDir,
    placement: Placement,
}

impl Machine {
    /// Processor 0 and 1Gi of node 0 are reserved.
    fn new(nodes: u32, policy: Policy, scope: Scope) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        sysfs(dir.path(), nodes);
        let devices = dir.path().join("device-plugins");
        let devices = Manager::new(devices.clone(), devices.join("state"), CancellationToken::new());
        Self { placement: place(dir.path(), policy, scope, devices), dir }
    }

    async fn place(&self, pod: &Pod) -> Result<(), String> {
        let every =
            pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let linux = every.map(|c| c.name.clone()).collect();
        self.placement
            .place(pod, &linux)
            .await
            .map_err(|refusal| format!("{}: {}", refusal.reason, refusal.message))
    }

    /// The processors and memory nodes of a container.
    fn has(&self, pod: &str, container: &str) -> String {
        let own = self.placement.cpus.share(pod, container).filter(|share| share.exclusive);
        let cpus = own.map(|share| share.cpus).unwrap_or_default();
        format!("{cpus}@{}", self.placement.memory.nodes(pod, container).unwrap_or_default())
    }

    fn files(&self) -> [PathBuf; 2] {
        ["cpu_manager_state", "memory_manager_state"].map(|name| self.dir.path().join(name))
    }
}

fn place(dir: &Path, policy: Policy, scope: Scope, devices: Manager) -> Placement {
    let topology = topology::read(dir);
    let cpus = ledger::Ledger { topology, reserved: set::Set::from([0]), ..Default::default() };
    let memory = machine::read(dir, 0);
    let nodes = Mask::of(memory.keys().copied());
    let reserved = BTreeMap::from([(0, Amounts::from([("memory".to_owned(), GI)]))]);
    let memory = memories::Ledger { machine: memory, reserved, ..Default::default() };
    let files = ["cpu_manager_state", "memory_manager_state"].map(|name| dir.join(name));
    let [cpu_file, memory_file] = files;
    let cpus = Cpus::open(cpu_file, cpus).expect("a checkpoint");
    let memory = Memory::open(memory_file, memory).expect("a checkpoint");
    let managers = (cpus, memory, devices);
    let settings = Settings { policy, scope, ..Settings::default() };
    Placement::new(&settings, nodes, distances(dir, nodes), managers).expect("few nodes")
}

fn container(name: &str, cpu: u64, gi: u64, things: u64) -> Value {
    let mut amounts = json!({"cpu": cpu.to_string(), "memory": format!("{gi}Gi")});
    if things > 0 {
        amounts[THING] = json!(things.to_string());
    }
    json!({"name": name, "resources": {"requests": amounts, "limits": amounts}})
}

fn pod(uid: &str, init: &[Value], mains: &[Value]) -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": uid}, "status": {"qosClass": "Guaranteed"},
        "spec": {"initContainers": init, "containers": mains}}))
    .expect("a Pod")
}

const AFFINITY: &str =
    "TopologyAffinityError: Pod was rejected: Resources cannot be allocated with Topology locality";

#[tokio::test]
async fn processors_and_memory_are_of_one_node() {
    let machine = Machine::new(2, Policy::SingleNumaNode, Scope::Container);
    let of = |uid: &str, cpu, gi| pod(uid, &[], &[container("c", cpu, gi, 0)]);
    // Node 0 has three processors and 7Gi to give, node 1 has four and 8Gi.
    assert_eq!(machine.place(&of("a", 2, 6)).await, Ok(()));
    assert_eq!(machine.has("a", "c"), "2-3@0");
    assert_eq!(machine.place(&of("b", 3, 2)).await, Ok(()));
    assert_eq!(machine.has("b", "c"), "4-6@1");
    // Two are left, on two nodes: as many of one node there are not.
    assert_eq!(machine.place(&of("c", 2, 1)).await, Err(AFFINITY.into()));
    assert_eq!(machine.has("c", "c"), "@");
    // One is left on each, and only node 1 has the memory for it.
    assert_eq!(machine.place(&of("d", 1, 4)).await, Ok(()));
    assert_eq!(machine.has("d", "c"), "7@1");
    // What a pod had is free again.
    machine.placement.retain(|uid| uid != "a");
    assert_eq!(machine.place(&of("c", 2, 1)).await, Ok(()));
    assert_eq!(machine.has("c", "c"), "2-3@0");
    let state = machine.files().map(|file| std::fs::read_to_string(file).expect("a file"));
    assert!(state.iter().all(|text| text.contains("\"c\":{\"c\":") && !text.contains("\"a\"")), "{state:?}");
}

#[tokio::test]
async fn policies_differ_where_one_node_is_too_small() {
    let large = || pod("p", &[], &[container("c", 5, 2, 0)]);
    for (policy, expected) in [
        (Policy::None, Ok("1,4-7@0")),
        (Policy::BestEffort, Ok("1,4-7@0")),
        (Policy::Restricted, Err(AFFINITY)),
        (Policy::SingleNumaNode, Err(AFFINITY)),
    ] {
        let machine = Machine::new(2, policy, Scope::Container);
        let placed = machine.place(&large()).await;
        let placed = placed.map(|()| machine.has("p", "c"));
        let placed = placed.as_ref().map(String::as_str).map_err(String::as_str);
        match (policy, expected) {
            // Without hints whole nodes and cores decide.
            (Policy::None, Ok(_)) => assert!(placed.is_ok_and(|has| has.ends_with("@0")), "{placed:?}"),
            (Policy::BestEffort, Ok(_)) => assert!(placed.is_ok(), "{placed:?}"),
            _ => assert_eq!(placed, expected, "{policy:?}"),
        }
    }
    // Five processors need two nodes, wherever they are: with as much memory restricted takes them.
    let machine = Machine::new(4, Policy::Restricted, Scope::Container);
    assert_eq!(machine.place(&pod("p", &[], &[container("c", 5, 9, 0)])).await, Ok(()));
    assert_eq!(machine.has("p", "c").split_once('@').map(|(_, nodes)| nodes.to_owned()), Some("0-1".into()));
}

#[tokio::test]
async fn a_pod_may_be_placed_as_a_whole() {
    let two = || pod("p", &[], &[container("one", 2, 5, 0), container("two", 2, 5, 0)]);
    // Each by itself: on two nodes. Together they fit none.
    let machine = Machine::new(2, Policy::SingleNumaNode, Scope::Container);
    assert_eq!(machine.place(&two()).await, Ok(()));
    assert_eq!([machine.has("p", "one"), machine.has("p", "two")], ["2-3@0", "4-5@1"]);
    let machine = Machine::new(2, Policy::SingleNumaNode, Scope::Pod);
    assert_eq!(machine.place(&two()).await, Err(AFFINITY.into()));
    // With less memory they fit node 1, which alone has four processors; the init container leaves its own.
    let small =
        pod("p", &[container("init", 4, 8, 0)], &[container("one", 2, 4, 0), container("two", 2, 4, 0)]);
    assert_eq!(machine.place(&small).await, Ok(()));
    assert_eq!(["init", "one", "two"].map(|name| machine.has("p", name)), ["4-7@1", "4-5@1", "6-7@1"]);
}

#[tokio::test]
async fn what_is_lacking_is_told_in_words() {
    let machine = Machine::new(2, Policy::None, Scope::Container);
    let words = "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to not enough cpus available to \
        satisfy request: requested=8, available=7, which is unexpected";
    assert_eq!(machine.place(&pod("p", &[], &[container("c", 8, 1, 0)])).await, Err(words.into()));
    let words = "UnexpectedAdmissionError: Pod was rejected: Allocate failed due to [memorymanager] failed to get the \
        default NUMA affinity, no NUMA nodes with enough memory is available, which is unexpected";
    // The first container has what it asks for; the pod does not, so that nothing is given.
    let both = pod("p", &[], &[container("c", 1, 1, 0), container("d", 1, 16, 0)]);
    assert_eq!(machine.place(&both).await, Err(words.into()));
    assert_eq!((machine.has("p", "c"), machine.placement.cpus.held("p")), ("@".into(), None));
}

#[tokio::test]
async fn who_asks_for_half_a_core_is_refused_where_whole_ones_are_given() {
    let dir = tempfile::tempdir().expect("a directory");
    sysfs(dir.path(), 1);
    let options = cpus::options::Options::of([cpus::options::Choice::FullCores]);
    let ledger = ledger::Ledger { topology: topology::read(dir.path()), options, ..Default::default() };
    let cpus = Cpus::open(dir.path().join("cpu_manager_state"), ledger).expect("a ledger");
    let devices = Manager::new(dir.path().to_owned(), dir.path().join("d"), CancellationToken::new());
    let managers = (cpus, Memory::default(), devices);
    let placement = Placement::new(&Settings::default(), Mask::of([0]), Distances::new(), managers);
    let machine = Machine { placement: placement.expect("few nodes"), dir };
    let words = "SMTAlignmentError: Pod was rejected: SMT Alignment Error: requested 3 cpus not multiple cpus per core = 2";
    assert_eq!(machine.place(&pod("p", &[], &[container("c", 3, 1, 0)])).await, Err(words.into()));
    assert_eq!(machine.place(&pod("p", &[], &[container("c", 2, 1, 0)])).await, Ok(()));
    let words = "SMTAlignmentError: Pod was rejected: SMT Alignment Error: not enough free physical CPUs: available \
        physical CPUs = 2, requested CPUs = 4, CPUs per core = 2";
    assert_eq!(machine.place(&pod("q", &[], &[container("c", 4, 1, 0)])).await, Err(words.into()));
}

#[tokio::test]
async fn what_was_placed_is_found_by_another_agent() {
    let machine = Machine::new(2, Policy::Restricted, Scope::Container);
    let own = pod("p", &[], &[container("c", 2, 1, 0)]);
    assert_eq!(machine.place(&own).await, Ok(()));
    let had = machine.has("p", "c");
    let devices =
        Manager::new(machine.dir.path().join("d"), machine.dir.path().join("s"), CancellationToken::new());
    let placement = place(machine.dir.path(), Policy::Restricted, Scope::Container, devices);
    let machine = Machine { placement, ..machine };
    assert_eq!(machine.has("p", "c"), had);
    machine.placement.complete(&own, &BTreeSet::from(["c".to_owned()]), &BTreeSet::new()).await;
    assert_eq!(machine.has("p", "c"), had);
    // One that turns out to be a wasm container has nothing of its own; one that began before the policy was set goes on
    // without, where there is nothing left.
    machine.placement.release("p", "c");
    assert_eq!(machine.has("p", "c"), "@");
    let large = pod("q", &[], &[container("c", 12, 1, 0)]);
    machine.placement.complete(&large, &BTreeSet::from(["c".to_owned()]), &BTreeSet::new()).await;
    assert_eq!(machine.has("q", "c"), "@");
}

#[tokio::test]
async fn what_has_ended_gets_nothing_beside_its_pod() {
    let machine = Machine::new(2, Policy::None, Scope::Container);
    let own = pod("p", &[container("init", 2, 1, 0)], &[container("c", 2, 1, 0)]);
    let linux = ["init", "c"].map(str::to_owned).into();
    assert_eq!(machine.place(&own).await, Ok(()));
    let had = machine.has("p", "c");
    // An agent of before took back what ended init containers had.
    machine.placement.release("p", "init");
    machine.placement.complete(&own, &linux, &BTreeSet::from(["init"])).await;
    assert_eq!([machine.has("p", "init"), machine.has("p", "c")], ["@".into(), had.clone()]);
    // One that is still to run gets what it lacks.
    machine.placement.release("p", "c");
    machine.placement.complete(&own, &linux, &BTreeSet::new()).await;
    assert_eq!(machine.has("p", "init"), machine.has("p", "c"));
}

#[test]
fn machines_with_many_nodes_have_no_policy() {
    let dir = tempfile::tempdir().expect("a directory");
    let devices = || Manager::new(dir.path().to_owned(), dir.path().join("state"), CancellationToken::new());
    let of = |policy, options| {
        let managers = (Cpus::default(), Memory::default(), devices());
        let settings = Settings { policy, options, ..Settings::default() };
        Placement::new(&settings, Mask::of(0..9), Distances::new(), managers).map(|p| p.decides())
    };
    assert_eq!(of(Policy::None, Options::default()), Ok(false));
    let words = "unsupported on machines with more than 8 NUMA Nodes";
    assert_eq!(of(Policy::BestEffort, Options::default()), Err(words.into()));
    let more = Options::parse("max-allowable-numa-nodes=9", &Default::default()).expect("an option");
    assert_eq!(of(Policy::BestEffort, more), Ok(true));
}

#[test]
fn a_machine_tells_how_far_its_nodes_are_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    sysfs(dir.path(), 2);
    std::fs::write(dir.path().join("node/node1/distance"), "21 10\n").expect("a file");
    let expected = Distances::from([((1, 0), 21), ((1, 1), 10)]);
    assert_eq!(distances(dir.path(), Mask::of(0..2)), expected);
}

struct Plain;

impl Describe for Plain {
    fn describe(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String> {
        let envs = std::collections::HashMap::from([("IDS".to_owned(), ids.join(","))]);
        Ok(ContainerAllocateResponse { envs, ..Default::default() })
    }
}

#[tokio::test]
async fn processors_are_near_the_devices() {
    let dir = tempfile::tempdir().expect("a directory");
    sysfs(dir.path(), 2);
    let on = |id: &str, node| {
        let nodes = vec![NumaNode { id: node }];
        Device {
            id: id.into(),
            health: coracle_devices::HEALTHY.into(),
            topology: Some(TopologyInfo { nodes }),
        }
    };
    let (_list, receiver) = watch::channel(vec![on("a", 0), on("b", 1), on("c", 1)]);
    let stop = CancellationToken::new();
    let directory = dir.path().join("device-plugins");
    let options =
        plugin::Options { directory: directory.clone(), socket: "thing.sock".into(), resource: THING.into() };
    tokio::spawn(plugin::run(options, receiver, Plain, stop.clone()));
    let devices = Manager::new(directory.clone(), directory.join("state"), stop.clone());
    let running = devices.clone();
    tokio::spawn(async move { running.run().await });
    let end = Instant::now() + Duration::from_secs(20);
    while devices.amounts().iter().all(|amount| amount.allocatable < 3) {
        assert!(Instant::now() < end, "no devices");
        let _ = tokio::time::timeout(Duration::from_millis(100), devices.changed()).await;
    }
    let placement = place(dir.path(), Policy::SingleNumaNode, Scope::Container, devices.clone());
    let machine = Machine { placement, dir };
    let of = |uid: &str, cpu, things| pod(uid, &[], &[container("c", cpu, 1, things)]);
    assert_eq!(machine.place(&of("p", 2, 2)).await, Ok(()));
    assert_eq!(machine.has("p", "c"), "4-5@1");
    // The one that is left is on node 0, where three processors are left.
    assert_eq!(machine.place(&of("q", 4, 1)).await, Err(AFFINITY.into()));
    assert_eq!(machine.place(&of("q", 3, 1)).await, Ok(()));
    assert_eq!(machine.has("q", "c"), "1-3@0");
    // When it is made, the container has what was kept for it.
    let wanted = BTreeMap::from([(THING.to_owned(), 2)]);
    let given = devices.allocate(&holder("p", "c"), &wanted, &[]).await.expect("devices");
    assert_eq!(given.envs["IDS"], "b,c");
    assert_eq!(machine.place(&of("r", 1, 1)).await, Err(AFFINITY.into()));
    stop.cancel();
}
