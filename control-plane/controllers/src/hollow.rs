//! Hollow nodes, in the manner of kubemark and KWOK: nodes that exist in the API only, and say of each pod that it runs.
//!
//! They measure a control plane without a machine behind each node. A pod of a Job is done at once, any other is ready at
//! once, one that is being deleted is gone at once.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::attach_detach::MANAGED;
use crate::cache::{Cache, Key, key_of};
use crate::events::api_time;
use crate::queue::WorkQueue;
use crate::reconcile::{self, Reconciler};
use crate::view::{Meta, Pod};
use crate::write::{self, Delete, Writer};

mod load;

pub use load::{Figures, Load, measure, take_away};

/// Label of every hollow node.
pub const LABEL: &str = "coracle.dev/hollow";
/// Nodes that are made, and leases that are renewed, at a time.
const AT_ONCE: usize = 32;
/// A lease is renewed this often, as a kubelet does.
const RENEWAL: Duration = Duration::from_secs(10);
/// The first address that pods get; the next ones follow.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 80, 0, 1);
const ADDRESSES: u32 = 1 << 19;

/// Which nodes there are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names are this, a hyphen and a number.
    pub prefix: String,
    pub count: usize,
    /// What each has, as quantities.
    pub allocatable: Value,
    /// Nodes are dealt over so many zones.
    pub zones: usize,
}

impl Options {
    /// So many nodes of 32 processors in three zones.
    pub fn new(count: usize) -> Self {
        let allocatable = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
        Self { prefix: "hollow".into(), count, allocatable, zones: 3 }
    }

    /// The names of the nodes.
    pub fn names(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.count).map(|i| format!("{}-{i}", self.prefix))
    }
}

/// What the nodes do.
struct Hollow {
    prefix: String,
    pods: Arc<Cache<Pod>>,
    writer: Writer,
    queue: WorkQueue,
    addresses: AtomicU32,
}

impl Hollow {
    fn is_ours(&self, pod: &Pod) -> bool {
        let number = pod.node().and_then(|node| node.strip_prefix(&self.prefix)?.strip_prefix('-'));
        number.is_some_and(|number| number.bytes().all(|b| b.is_ascii_digit()))
    }

    fn address(&self) -> String {
        let offset = self.addresses.fetch_add(1, Ordering::Relaxed) % ADDRESSES;
        Ipv4Addr::from(u32::from(FIRST_ADDRESS) + offset).to_string()
    }
}

/// The status of a pod that runs, or of a Job's that is done.
fn status(pod: &Pod, address: &str) -> Value {
    let now = api_time(Timestamp::now());
    let done = pod.controller().is_some_and(|owner| owner.kind == "Job");
    let ready = if done { "False" } else { "True" };
    let condition =
        |type_: &str, status: &str| json!({ "type": type_, "status": status, "lastTransitionTime": now });
    let state = if done {
        json!({ "terminated": { "exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now } })
    } else {
        json!({ "running": { "startedAt": now } })
    };
    let container = |name: &str| json!({ "name": name, "ready": !done, "started": !done, "restartCount": 0, "image": "hollow", "imageID": "", "state": state });
    let containers: Vec<Value> = pod.spec.containers.iter().map(|c| container(&c.name)).collect();
    json!({ "metadata": { "uid": pod.uid() }, "status": {
        "phase": if done { "Succeeded" } else { "Running" }, "startTime": now,
        "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": [condition("Initialized", "True"), condition("ContainersReady", ready), condition("Ready", ready)],
        "containerStatuses": containers,
    } })
}

#[async_trait]
impl Reconciler for Hollow {
    fn name(&self) -> &'static str {
        "hollow-nodes"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    fn workers(&self) -> usize {
        AT_ONCE
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(pod) = self.pods.get(key).filter(|pod| self.is_ours(pod)) else { return Ok(None) };
        let path = write::path::<Pod>(pod.namespace(), pod.name());
        if pod.is_terminating() {
            let how = Delete { uid: Some(pod.uid()), grace: Some(0), ..Delete::default() };
            self.writer.delete(&path, how).await?;
        } else if pod.status.pod_ip.is_none() {
            let body = status(&pod, &self.address());
            match self.writer.strategic(&format!("{path}/status"), &body).await {
                Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        Ok(None)
    }
}

async fn make(writer: &Writer, options: &Options, name: &str, number: usize) -> anyhow::Result<()> {
    let zone = format!("zone-{}", number % options.zones.max(1));
    let body = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "annotations": { MANAGED: "true" }, "labels": {
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", LABEL: "true", "topology.kubernetes.io/zone": zone,
    } } });
    match writer.create("/api/v1/nodes", &body).await {
        Err(error) if write::is_already_exists(&error) => {}
        made => drop(made.with_context(|| format!("make node {name}"))?),
    }
    let now = api_time(Timestamp::now());
    let status = json!({ "status": {
        "allocatable": options.allocatable, "capacity": options.allocatable,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "a hollow node",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        }],
        "nodeInfo": { "kubeletVersion": "hollow", "osImage": "", "kernelVersion": "", "containerRuntimeVersion": "",
            "machineID": "", "systemUUID": "", "bootID": "", "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "" },
    } });
    writer.merge(&format!("/api/v1/nodes/{name}/status"), &status).await?;
    renew(writer, name).await
}

async fn renew(writer: &Writer, name: &str) -> anyhow::Result<()> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let spec = json!({ "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now });
    let path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    match writer.merge(&format!("{path}/{name}"), &json!({ "spec": spec })).await {
        Err(error) if write::is_not_found(&error) => {
            let metadata = json!({ "name": name, "namespace": "kube-node-lease" });
            let body = json!({ "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec });
            writer.create(path, &body).await?;
        }
        other => {
            other?;
        }
    }
    Ok(())
}

async fn unmake(writer: &Writer, name: String) -> anyhow::Result<()> {
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}");
    for path in [format!("/api/v1/nodes/{name}"), lease] {
        match writer.delete(&path, Delete::default()).await {
            Err(error) if write::is_not_found(&error) => {}
            other => drop(other.with_context(|| format!("remove {path}"))?),
        }
    }
    Ok(())
}

/// Makes the nodes, calls `ready`, and plays them until `shutdown`; they stay in the API until [`remove`].
///
/// # Errors
/// When a node cannot be made.
pub async fn run(
    client: kube::Client,
    options: Options,
    ready: impl FnOnce(Arc<Cache<Pod>>),
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let writer = Writer::new(client.clone());
    let pods: Arc<Cache<Pod>> = Arc::default();
    let hollow = Arc::new(Hollow {
        prefix: options.prefix.clone(),
        pods: pods.clone(),
        writer: writer.clone(),
        queue: WorkQueue::new(),
        addresses: AtomicU32::new(0),
    });
    let own = hollow.clone();
    pods.on_change(move |_, new| {
        if let Some(pod) = new.filter(|pod| own.is_ours(pod)) {
            own.queue.add(key_of(pod.as_ref()));
        }
    });
    let names: Vec<String> = options.names().collect();
    let mut makings = Vec::with_capacity(names.len());
    for (number, name) in names.iter().enumerate() {
        makings.push(make(&writer, &options, name, number));
    }
    let mut made = futures::stream::iter(makings).buffer_unordered(AT_ONCE);
    while let Some(one) = made.next().await {
        one?;
    }
    drop(made);
    let config = kube::runtime::watcher::Config::default();
    tokio::spawn(pods.clone().follow(client, config, shutdown.clone()));
    pods.synced().await;
    ready(pods);
    let beats = async {
        let due = tokio::time::interval(RENEWAL / u32::try_from(names.len().max(1)).unwrap_or(u32::MAX));
        let renewal = async |name: &String| {
            if let Err(error) = renew(&writer, name).await {
                tracing::warn!(node = name, error = format!("{error:#}"), "renew a lease");
            }
        };
        // A server that is slow is not waited for with one: nodes that are late one after the other would be thought dead.
        let turns = futures::stream::unfold((due, names.iter().cycle()), async |(mut due, mut names)| {
            due.tick().await;
            Some((names.next()?, (due, names)))
        });
        turns.for_each_concurrent(AT_ONCE, renewal).await;
    };
    tokio::select! {
        () = reconcile::run(hollow, shutdown.clone()) => {}
        () = beats => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

/// Takes the nodes away.
///
/// # Errors
/// When the API refuses.
pub async fn remove(client: kube::Client, options: &Options) -> anyhow::Result<()> {
    let writer = Writer::new(client);
    let going: Vec<_> = options.names().map(|name| unmake(&writer, name)).collect();
    futures::stream::iter(going).buffer_unordered(AT_ONCE).try_collect().await
}
