//! The Node object and its Lease.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::Shared;

const LEASE_SECONDS: i64 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// While the node is not Ready yet, or its addresses are not known.
const HURRY: Duration = Duration::from_millis(200);
/// A status that did not change is written again after this long.
const STATUS_AGE: Duration = Duration::from_secs(300);

/// Keeps the Node and its Lease.
pub struct Keeper {
    shared: Arc<Shared>,
    port: u16,
    max_pods: u32,
}

/// What was last said, so that only changes are written.
#[derive(Default)]
struct Said {
    status: Value,
    at: Option<Instant>,
    pod_cidr: String,
    ready: bool,
    leased: Option<Instant>,
}

impl Keeper {
    pub fn new(shared: Arc<Shared>, port: u16, max_pods: u32) -> Self {
        Self { shared, port, max_pods }
    }

    /// Runs for ever.
    pub async fn run(self) {
        let mut said = Said::default();
        loop {
            if let Err(error) = self.round(&mut said).await {
                tracing::warn!(node = self.shared.node_name, error = format!("{error:#}"), "update the node");
            }
            tokio::time::sleep(if said.ready { RENEW } else { HURRY }).await;
        }
    }

    async fn round(&self, said: &mut Said) -> Result<()> {
        let nodes = Api::<Node>::all(self.shared.client.clone());
        let name = self.shared.node_name.as_str();
        let node = match nodes.get_opt(name).await.context("read the Node")? {
            Some(node) => node,
            None => self.register(&nodes).await?,
        };
        self.pod_cidr(&node, said).await?;
        if said.leased.is_none_or(|at| at.elapsed() >= RENEW / 2) {
            self.renew_lease(&node).await.context("renew the Lease")?;
            said.leased = Some(Instant::now());
        }
        let status = self.status(said).await;
        said.ready = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|one| one["type"] == "Ready" && one["status"] == "True");
        if status != said.status || said.at.is_none_or(|at| at.elapsed() > STATUS_AGE) {
            let patch = json!({"status": with_times(&status, &node)});
            nodes
                .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .context("write the status")?;
            said.status = status;
            said.at = Some(Instant::now());
        }
        Ok(())
    }

    async fn register(&self, nodes: &Api<Node>) -> Result<Node> {
        let name = &self.shared.node_name;
        let node = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch(),
                "coracle.dev/wasm": "true",
            }},
            "spec": {},
        }))?;
        nodes.create(&PostParams::default(), &node).await.context("register the Node")
    }

    /// The pods' addresses, chosen by a controller, are told to the runtime.
    async fn pod_cidr(&self, node: &Node, said: &mut Said) -> Result<()> {
        let Some(pod_cidr) = node.spec.as_ref().and_then(|spec| spec.pod_cidr.as_deref()) else {
            return Ok(());
        };
        if said.pod_cidr != pod_cidr {
            self.shared.cri.set_pod_cidr(pod_cidr).await.context("tell the runtime its pod addresses")?;
            pod_cidr.clone_into(&mut said.pod_cidr);
        }
        Ok(())
    }

    async fn renew_lease(&self, node: &Node) -> Result<()> {
        let leases = Api::<Lease>::namespaced(self.shared.client.clone(), "kube-node-lease");
        let name = self.shared.node_name.as_str();
        let spec = json!({
            "holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": micro_time(),
        });
        let patch = Patch::Merge(json!({"spec": spec}));
        match leases.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
        let lease = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "kube-node-lease", "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": name, "uid": node.metadata.uid,
            }]},
            "spec": spec,
        }))?;
        leases.create(&PostParams::default(), &lease).await?;
        Ok(())
    }

    /// The status without times, so that it compares.
    async fn status(&self, said: &Said) -> Value {
        let runtime = self.runtime_condition().await;
        let version = self.shared.cri.version().await.ok();
        let container_runtime = version
            .map(|v| format!("{}://{}", v.runtime_name, v.runtime_version))
            .unwrap_or_else(|| "unknown://".to_owned());
        let ready = match (&runtime, said.pod_cidr.is_empty()) {
            (Err(why), _) => condition("Ready", "False", "KubeletNotReady", why),
            (Ok(()), true) => {
                condition("Ready", "False", "KubeletNotReady", "the node has no pod addresses yet")
            }
            (Ok(()), false) => condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        };
        let capacity = json!({
            "cpu": cpus().to_string(), "memory": format!("{}Ki", memory_kib()), "pods": self.max_pods.to_string(),
            "ephemeral-storage": "0",
        });
        json!({
            "addresses": [
                {"type": "InternalIP", "address": self.shared.node_ip.to_string()},
                {"type": "Hostname", "address": self.shared.node_name},
            ],
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ready,
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
            "nodeInfo": {
                "architecture": arch(), "operatingSystem": "linux", "osImage": os_image(),
                "kernelVersion": file_line("/proc/sys/kernel/osrelease"), "machineID": file_line("/etc/machine-id"),
                "systemUUID": "", "bootID": file_line("/proc/sys/kernel/random/boot_id"),
                "containerRuntimeVersion": container_runtime,
                "kubeletVersion": concat!("v1.36.2+coracle-", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
            },
        })
    }

    async fn runtime_condition(&self) -> Result<(), String> {
        let answer = self
            .shared
            .cri
            .status()
            .await
            .map_err(|status| format!("the container runtime does not answer: {}", status.message()))?;
        let conditions = answer.status.map(|status| status.conditions).unwrap_or_default();
        match conditions.into_iter().find(|one| !one.status) {
            Some(one) => Err(format!("{}: {}", one.reason, one.message)),
            None => Ok(()),
        }
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message})
}

/// Adds the times of the conditions; a transition keeps its time while the status stays.
fn with_times(status: &Value, node: &Node) -> Value {
    let now = Timestamp::now().to_string();
    let before = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut status = status.clone();
    for one in status["conditions"].as_array_mut().into_iter().flatten() {
        let same = before.iter().find(|old| one["type"] == *old.type_ && one["status"] == *old.status);
        let since = same.and_then(|old| old.last_transition_time.as_ref()).map(|time| time.0.to_string());
        one["lastHeartbeatTime"] = json!(now_seconds(&now));
        one["lastTransitionTime"] = json!(since.unwrap_or_else(|| now_seconds(&now)));
    }
    status
}

/// RFC 3339 in whole seconds, as metav1.Time is written.
fn now_seconds(text: &str) -> String {
    text.split_once('.').map_or_else(|| text.to_owned(), |(seconds, _)| format!("{seconds}Z"))
}

fn micro_time() -> String {
    format!("{:.6}", Timestamp::now())
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn cpus() -> usize {
    std::thread::available_parallelism().map(usize::from).unwrap_or(1)
}

fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn file_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}
