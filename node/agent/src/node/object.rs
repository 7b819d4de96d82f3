//! Pure: the Node object and its status, in the kubelet's words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use coracle_devices::manager::Amount;

use super::machine::Machine;
use crate::storage::DIRECTORY_ANNOTATION;

/// The Kubernetes version whose kubelet this agent stands in for.
pub const VERSION: &str = "v1.36.2+coracle";

/// What the runtime says of itself.
#[derive(Clone, Debug, Default)]
pub struct RuntimeFacts {
    /// `name://version`; `None`: it does not answer.
    pub version: Option<String>,
    /// Why the node is not ready.
    pub problem: Option<String>,
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

/// The patch that tells where persistent data may lie on the node.
pub fn missing_annotation(node: &Node, directory: &str) -> Option<Value> {
    let said = node.metadata.annotations.as_ref().and_then(|a| a.get(DIRECTORY_ANNOTATION));
    (said.map(String::as_str) != Some(directory))
        .then(|| json!({"metadata": {"annotations": {DIRECTORY_ANNOTATION: directory}}}))
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
    let amounts: BTreeMap<String, Quantity> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", format!("{}Ki", machine.memory / 1024)),
        ("pods", facts.max_pods.to_string()),
    ]
    .into_iter()
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .collect();
    // What others advertise on this Node (`kubectl patch --subresource=status`) stays.
    let with_devices = |old: Option<BTreeMap<String, Quantity>>, of: fn(&Amount) -> usize| {
        let mut all: BTreeMap<String, Quantity> =
            old.unwrap_or_default().into_iter().filter(|(name, _)| name.contains('/')).collect();
        all.extend(amounts.clone());
        all.extend(facts.devices.iter().map(|d| (d.resource.clone(), Quantity(of(d).to_string()))));
        all
    };
    let capacity = with_devices(old.capacity.clone(), |d| d.capacity);
    let allocatable = with_devices(old.allocatable.clone(), |d| d.allocatable);
    let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
    let before = old.node_info.as_ref().map(|i| i.container_runtime_version.clone()).unwrap_or_default();
    NodeStatus {
        addresses: Some(vec![address("InternalIP", &facts.address), address("Hostname", &facts.name)]),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(&old, facts)),
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
        ..old
    }
}

fn conditions(old: &NodeStatus, facts: &Facts<'_>) -> Vec<NodeCondition> {
    let ready = match &facts.runtime.problem {
        None => ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        Some(problem) => ("Ready", "False", "KubeletNotReady", problem.as_str()),
    };
    let all = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
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

/// Whether two statuses differ in more than the time of their last heartbeat.
pub fn differs(old: Option<&NodeStatus>, new: &NodeStatus) -> bool {
    let calm = |status: &NodeStatus| {
        let mut status = status.clone();
        status.conditions.iter_mut().flatten().for_each(|c| {
            c.last_heartbeat_time = None;
            c.last_transition_time = None;
        });
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
            },
            devices: Vec::new(),
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
    }

    #[test]
    fn labels_are_restored() {
        let mut node = node("node-1");
        assert_eq!(missing_labels(&node, "node-1"), None);
        node.metadata.labels = None;
        assert!(missing_labels(&node, "node-1").is_some());
    }
}
