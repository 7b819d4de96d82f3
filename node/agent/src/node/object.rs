//! Pure: the Node object and its status, in the kubelet's words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use coracle_devices::manager::Amount;

use super::machine::Machine;
use crate::eviction::signals::Signal;
use crate::eviction::thresholds::Pressure;
use crate::storage::DIRECTORY_ANNOTATION;
use crate::tuning::{Reserved, Tuning};

/// The Kubernetes version whose kubelet this agent stands in for.
pub const VERSION: &str = "v1.36.2+coracle";

/// What the runtime says of itself.
#[derive(Clone, Debug, Default)]
pub struct RuntimeFacts {
    /// `name://version`; `None`: it does not answer.
    pub version: Option<String>,
    /// Why the node is not ready.
    pub problem: Option<String>,
    /// Whether `supplementalGroupsPolicy: Strict` is done.
    pub strict_groups: Option<bool>,
}

/// What a status is made from.
pub struct Facts<'a> {
    /// This machine.
    pub machine: &'a Machine,
    /// The node's address.
    pub address: String,
    /// The node's name.
    pub name: String,
    /// Of the node API.
    pub port: u16,
    /// Most pods at a time.
    pub max_pods: u32,
    /// The runtime.
    pub runtime: RuntimeFacts,
    /// Devices of plugins.
    pub devices: Vec<Amount>,
    /// Reservations and thresholds.
    pub tuning: &'a Tuning,
    /// What the node is short of.
    pub pressure: Pressure,
    /// The node is being shut down.
    pub shutting_down: bool,
    /// The largest of the node's images.
    pub images: Vec<ContainerImage>,
    /// Attached volumes that pods have.
    pub volumes_in_use: Vec<String>,
    /// The clock.
    pub now: Timestamp,
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn labels(name: &str) -> BTreeMap<String, String> {
    let pairs = [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
        ("coracle.dev/wasm", "true"),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// A new Node.
pub fn node(name: &str) -> Node {
    let metadata =
        ObjectMeta { name: Some(name.to_owned()), labels: Some(labels(name)), ..Default::default() };
    Node { metadata, ..Default::default() }
}

/// The annotation by which a node leaves attaching to the attach/detach controller.
const ATTACHED_FROM_OUTSIDE: &str = "volumes.kubernetes.io/controller-managed-attach-detach";

/// The patch that tells where persistent data may lie on the node, and that volumes are attached to it from outside.
pub fn missing_annotation(node: &Node, directory: &str) -> Option<Value> {
    let said = |key: &str| node.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    (said(DIRECTORY_ANNOTATION) != Some(directory) || said(ATTACHED_FROM_OUTSIDE) != Some("true")).then(
        || json!({"metadata": {"annotations": {DIRECTORY_ANNOTATION: directory, ATTACHED_FROM_OUTSIDE: "true"}}}),
    )
}

/// The patch that gives a Node the labels that it must have.
pub fn missing_labels(node: &Node, name: &str) -> Option<Value> {
    let existing = node.metadata.labels.clone().unwrap_or_default();
    let missing: BTreeMap<_, _> =
        labels(name).into_iter().filter(|(k, v)| existing.get(k) != Some(v)).collect();
    (!missing.is_empty()).then(|| json!({"metadata": {"labels": missing}}))
}

/// The status that the Node should have.
pub fn status(node: &Node, facts: &Facts<'_>) -> NodeStatus {
    let old = node.status.clone().unwrap_or_default();
    let machine = facts.machine;
    // What others advertise on this Node (`kubectl patch --subresource=status`) stays.
    let with_devices = |old: Option<BTreeMap<String, Quantity>>,
                        own: [i64; 3],
                        huge: Vec<(String, u64)>,
                        of: fn(&Amount) -> usize| {
        let mut all: BTreeMap<String, Quantity> =
            old.unwrap_or_default().into_iter().filter(|(name, _)| name.contains('/')).collect();
        let [cpu, memory, storage] = own;
        let cpu = if cpu % 1000 == 0 { (cpu / 1000).to_string() } else { format!("{cpu}m") };
        let kibibytes = |bytes: i64| Quantity(format!("{}Ki", bytes / 1024));
        all.insert("cpu".to_owned(), Quantity(cpu));
        all.insert("memory".to_owned(), kibibytes(memory));
        all.insert("ephemeral-storage".to_owned(), kibibytes(storage));
        all.insert("pods".to_owned(), Quantity(facts.max_pods.to_string()));
        all.extend(huge.into_iter().map(|(name, bytes)| (name, Quantity(crate::memory::words(bytes)))));
        all.extend(facts.devices.iter().map(|d| (d.resource.clone(), Quantity(of(d).to_string()))));
        all
    };
    let has = [machine.cpus.saturating_mul(1000), machine.memory, machine.storage];
    let huge = machine.huge_pages();
    let reserved = |name: &str| -> u64 {
        facts
            .tuning
            .reserved_memory
            .values()
            .filter_map(|of| of.get(name))
            .fold(0, |a, b| a.saturating_add(*b))
    };
    let left =
        huge.iter().map(|(name, bytes)| (name.clone(), bytes.saturating_sub(reserved(name)))).collect();
    let capacity = with_devices(old.capacity.clone(), has, huge.into_iter().collect(), |d| d.capacity);
    let allocatable =
        with_devices(old.allocatable.clone(), for_pods(machine, facts.tuning), left, |d| d.allocatable);
    let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
    let before = old.node_info.as_ref().map(|i| i.container_runtime_version.clone()).unwrap_or_default();
    NodeStatus {
        addresses: Some(vec![address("InternalIP", &facts.address), address("Hostname", &facts.name)]),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(&old, facts)),
        images: Some(facts.images.clone()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(facts.port) }),
        }),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().into(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: facts.runtime.version.clone().unwrap_or(before),
            kernel_version: machine.kernel.clone(),
            kubelet_version: VERSION.into(),
            kube_proxy_version: String::new(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.machine_id.clone(),
            swap: None,
        }),
        features: facts
            .runtime
            .strict_groups
            .map(|has| NodeFeatures { supplemental_groups_policy: Some(has) })
            .or(old.features.clone()),
        // Nothing is said where nothing was said before.
        volumes_in_use: Some(facts.volumes_in_use.clone())
            .filter(|now| !now.is_empty() || old.volumes_in_use.as_ref().is_some_and(|b| !b.is_empty())),
        // The attach/detach controller's.
        volumes_attached: None,
        ..old
    }
}

/// What pods may have of a machine: memory that is huge pages is counted as those.
pub fn for_pods(machine: &Machine, tuning: &Tuning) -> [i64; 3] {
    let has = [machine.cpus.saturating_mul(1000), machine.memory, machine.storage];
    let [cpu, memory, storage] = allocatable(has, tuning);
    let huge = machine.huge_pages().values().fold(0, |a: u64, b| a.saturating_add(*b));
    [cpu, memory.saturating_sub(i64::try_from(huge).unwrap_or(i64::MAX)).max(0), storage]
}

/// What pods may have of millicores, bytes of memory and bytes of disk: all but what is reserved and what has to stay free.
pub fn allocatable([cpu, memory, storage]: [i64; 3], tuning: &Tuning) -> [i64; 3] {
    let free = |signal: Signal, capacity: i64| -> i64 {
        let hard = tuning.eviction.thresholds.iter().filter(|t| t.signal == signal && t.grace.is_none());
        let amounts = hard.map(|t| t.amount.of(u64::try_from(capacity).unwrap_or(0)));
        amounts.max().map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
    };
    let reserved = [&tuning.kube_reserved, &tuning.system_reserved];
    let sum = |of: fn(&Reserved) -> i64| reserved.iter().map(|r| of(r)).fold(0, i64::saturating_add);
    [
        cpu.saturating_sub(sum(Reserved::cpu)).max(0),
        memory
            .saturating_sub(sum(|r| r.bytes("memory")))
            .saturating_sub(free(Signal::MemoryAvailable, memory))
            .max(0),
        storage
            .saturating_sub(sum(|r| r.bytes("ephemeral-storage")))
            .saturating_sub(free(Signal::NodefsAvailable, storage))
            .max(0),
    ]
}

fn conditions(old: &NodeStatus, facts: &Facts<'_>) -> Vec<NodeCondition> {
    let ready = match &facts.runtime.problem {
        _ if facts.shutting_down => ("Ready", "False", "KubeletNotReady", "node is shutting down"),
        None => ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        Some(problem) => ("Ready", "False", "KubeletNotReady", problem.as_str()),
    };
    let Pressure { memory, disk, pid } = facts.pressure;
    let all = [
        match memory {
            false => (
                "MemoryPressure",
                "False",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ),
            true => (
                "MemoryPressure",
                "True",
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ),
        },
        match disk {
            false => ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            true => ("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
        },
        match pid {
            false => {
                ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available")
            }
            true => {
                ("PIDPressure", "True", "KubeletHasInsufficientPID", "kubelet has insufficient PID available")
            }
        },
        ready,
    ];
    let existing = old.conditions.clone().unwrap_or_default();
    let mut conditions: Vec<NodeCondition> = all
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let same = existing.iter().find(|c| c.type_ == kind && c.status == status);
            NodeCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_heartbeat_time: Some(Time(facts.now)),
                last_transition_time: same
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(facts.now))),
            }
        })
        .collect();
    let ours: Vec<String> = conditions.iter().map(|c| c.type_.clone()).collect();
    conditions.extend(existing.into_iter().filter(|c| !ours.contains(&c.type_)));
    conditions
}

/// The Events that tell of conditions that changed; without an old status, of all.
pub fn news(old: Option<&NodeStatus>, new: &NodeStatus) -> Vec<&'static str> {
    let words = |kind: &str, status: &str| match (kind, status) {
        ("MemoryPressure", "True") => Some("NodeHasInsufficientMemory"),
        ("MemoryPressure", _) => Some("NodeHasSufficientMemory"),
        ("DiskPressure", "True") => Some("NodeHasDiskPressure"),
        ("DiskPressure", _) => Some("NodeHasNoDiskPressure"),
        ("PIDPressure", "True") => Some("NodeHasInsufficientPID"),
        ("PIDPressure", _) => Some("NodeHasSufficientPID"),
        ("Ready", "True") => Some("NodeReady"),
        ("Ready", _) => Some("NodeNotReady"),
        _ => None,
    };
    let before = old.and_then(|o| o.conditions.as_deref()).unwrap_or_default();
    let changed = |c: &&NodeCondition| !before.iter().any(|b| b.type_ == c.type_ && b.status == c.status);
    let all = new.conditions.iter().flatten().filter(changed);
    all.filter_map(|c| words(&c.type_, &c.status)).collect()
}

/// Whether two statuses differ in more than the time of their last heartbeat.
pub fn differs(old: Option<&NodeStatus>, new: &NodeStatus) -> bool {
    let calm = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| {
            c.last_heartbeat_time = None;
            c.last_transition_time = None;
        });
        status.volumes_attached = None;
        status.volumes_in_use = status.volumes_in_use.filter(|v| !v.is_empty());
        status
    };
    old.is_none_or(|old| calm(old) != calm(new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(machine: &Machine, problem: Option<&str>) -> NodeStatus {
        let facts = Facts {
            machine,
            address: "127.0.1.1".into(),
            name: "node-1".into(),
            port: 10250,
            max_pods: 1000,
            runtime: RuntimeFacts {
                version: Some("coracle://0.1.0".into()),
                problem: problem.map(str::to_owned),
                strict_groups: Some(true),
            },
            devices: Vec::new(),
            tuning: &Tuning::default(),
            pressure: Pressure::default(),
            shutting_down: false,
            images: Vec::new(),
            volumes_in_use: Vec::new(),
            now: Timestamp::UNIX_EPOCH,
        };
        status(&node("node-1"), &facts)
    }

    #[test]
    fn ready_and_not() {
        let machine = Machine { cpus: 2, memory: 2048, ..Default::default() };
        let ready = facts(&machine, None);
        let last = |s: &NodeStatus| s.conditions.iter().flatten().last().cloned().unwrap_or_default();
        assert_eq!((last(&ready).type_.as_str(), last(&ready).status.as_str()), ("Ready", "True"));
        let down = facts(&machine, Some("container runtime is down"));
        assert_eq!(last(&down).reason.as_deref(), Some("KubeletNotReady"));
        assert!(differs(Some(&ready), &down));
        assert!(!differs(Some(&ready), &facts(&machine, None)));
        assert_eq!(ready.capacity.unwrap_or_default()["memory"].0, "2Ki");
        assert_eq!(ready.features.and_then(|f| f.supplemental_groups_policy), Some(true));
    }

    #[test]
    fn what_is_reserved_is_not_for_pods() {
        let reserved = |text: &str| Reserved::parse(text).expect("amounts");
        let tuning = Tuning {
            kube_reserved: reserved("cpu=100m,memory=256Mi"),
            system_reserved: reserved("cpu=100m,ephemeral-storage=1Gi"),
            ..Tuning::default()
        };
        let has = [2000, 1 << 30, 100 << 30];
        // 100Mi of memory and a tenth of the disk have to stay free.
        let left = allocatable(has, &tuning);
        assert_eq!(left, [1800, (1024 - 256 - 100) << 20, (100 - 1 - 10) << 30]);
    }

    #[test]
    fn labels_are_restored() {
        let mut node = node("node-1");
        assert_eq!(missing_labels(&node, "node-1"), None);
        node.metadata.labels = None;
        assert!(missing_labels(&node, "node-1").is_some());
    }
}
