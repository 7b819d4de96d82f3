//! What a frame shows: nodes and pods as they are followed, and what they use as metrics.k8s.io says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_api::quantity::Quantity;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;
use tokio::sync::Notify;

/// Between two readings of the metrics.
const METRICS: Duration = Duration::from_secs(5);

/// Cores and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cores: f64,
    pub bytes: f64,
}

/// By node name, and by namespace and pod name.
#[derive(Default)]
struct Metrics {
    nodes: HashMap<String, Usage>,
    pods: HashMap<(String, String), Usage>,
}

/// What is followed.
pub struct Objects {
    nodes: Store<Node>,
    pods: Store<Pod>,
    metrics: Arc<Mutex<Metrics>>,
}

impl Objects {
    /// The caches, and the work that keeps them and tells of changes; it never ends.
    pub fn follow(
        client: Client,
        namespace: Option<String>,
        changed: &Notify,
    ) -> (Self, impl Future<Output = ()>) {
        let (nodes, node_writer) = reflector::store();
        let (pods, pod_writer) = reflector::store();
        let metrics = Arc::new(Mutex::new(Metrics::default()));
        let of_pods: Api<Pod> = match namespace {
            Some(namespace) => Api::namespaced(client.clone(), &namespace),
            None => Api::all(client.clone()),
        };
        let config = watcher::Config::default;
        let watch_nodes =
            watcher(Api::<Node>::all(client.clone()), config()).default_backoff().reflect(node_writer);
        let watch_pods = watcher(of_pods, config()).default_backoff().reflect(pod_writer);
        let read = metrics.clone();
        let work = async move {
            tokio::join!(
                watch_nodes.for_each(|_| async { changed.notify_one() }),
                watch_pods.for_each(|_| async { changed.notify_one() }),
                async {
                    loop {
                        // Absent while nobody serves the API: then nothing is shown for usage.
                        let all = Metrics::read(&client).await.unwrap_or_default();
                        *read.lock().unwrap_or_else(PoisonError::into_inner) = all;
                        changed.notify_one();
                        tokio::time::sleep(METRICS).await;
                    }
                },
            );
        };
        (Self { nodes, pods, metrics }, work)
    }
}

impl Metrics {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let mut metrics = Self::default();
        for item in items(client, "nodes").await? {
            metrics.nodes.insert(text(&item, "/metadata/name"), usage(&item["usage"]));
        }
        for item in items(client, "pods").await? {
            let mut sum = Usage::default();
            for container in item["containers"].as_array().into_iter().flatten() {
                let one = usage(&container["usage"]);
                sum.cores += one.cores;
                sum.bytes += one.bytes;
            }
            metrics.pods.insert((text(&item, "/metadata/namespace"), text(&item, "/metadata/name")), sum);
        }
        Ok(metrics)
    }
}

async fn items(client: &Client, plural: &str) -> anyhow::Result<Vec<Value>> {
    let request = http::Request::get(format!("/apis/metrics.k8s.io/v1beta1/{plural}")).body(Vec::new())?;
    let mut list: Value = client.request(request).await?;
    Ok(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn usage(object: &Value) -> Usage {
    Usage { cores: number(object["cpu"].as_str()), bytes: number(object["memory"].as_str()) }
}

/// A quantity to the thousandth; 0 where there is none.
fn number(text: Option<&str>) -> f64 {
    let thousandths =
        text.and_then(|text| Quantity::parse(text).ok()).map_or(0, |quantity| quantity.milli_value());
    thousandths as f64 / 1000.0
}

/// A row of the nodes.
pub struct NodeRow {
    pub name: String,
    pub ready: bool,
    pub pods: usize,
    pub usage: Option<Usage>,
    pub capacity: Usage,
}

/// A row of the pods.
pub struct PodRow {
    pub namespace: String,
    pub name: String,
    pub ready: usize,
    pub containers: usize,
    pub status: String,
    pub restarts: i32,
    pub usage: Option<Usage>,
    pub node: String,
    pub age: Option<Duration>,
}

/// What one frame shows.
pub struct Snapshot {
    pub server: String,
    pub nodes: Vec<NodeRow>,
    pub pods: Vec<PodRow>,
}

impl Snapshot {
    /// The objects as they are now.
    pub fn of(objects: &Objects, server: &str) -> Self {
        let metrics = objects.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = objects.pods.state();
        let mut nodes: Vec<_> =
            objects.nodes.state().iter().map(|node| node_row(node, &pods, &metrics)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let mut rows: Vec<_> = pods.iter().map(|pod| pod_row(pod, &metrics)).collect();
        rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Self { server: server.to_owned(), nodes, pods: rows }
    }
}

fn node_row(node: &Node, pods: &[Arc<Pod>], metrics: &Metrics) -> NodeRow {
    let name = node.name_any();
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    let capacity = status.capacity.unwrap_or_default();
    let of = |resource: &str| number(capacity.get(resource).map(|quantity| quantity.0.as_str()));
    NodeRow {
        ready,
        pods: pods
            .iter()
            .filter(|pod| pod.spec.as_ref().is_some_and(|s| s.node_name.as_ref() == Some(&name)))
            .count(),
        usage: metrics.nodes.get(&name).copied(),
        capacity: Usage { cores: of("cpu"), bytes: of("memory") },
        name,
    }
}

fn pod_row(pod: &Pod, metrics: &Metrics) -> PodRow {
    let status = pod.status.clone().unwrap_or_default();
    let containers = status.container_statuses.unwrap_or_default();
    let waiting =
        containers.iter().find_map(|container| container.state.as_ref()?.waiting.as_ref()?.reason.clone());
    let phase = status.reason.or(waiting).or(status.phase).unwrap_or_default();
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let created = pod.creation_timestamp().map(|time| jiff::Timestamp::now().duration_since(time.0));
    PodRow {
        ready: containers.iter().filter(|container| container.ready).count(),
        containers: pod.spec.as_ref().map_or(0, |spec| spec.containers.len()),
        status: if pod.metadata.deletion_timestamp.is_some() { "Terminating".into() } else { phase },
        restarts: containers.iter().map(|container| container.restart_count).sum(),
        usage: metrics.pods.get(&(namespace.clone(), name.clone())).copied(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
        age: created.and_then(|age| Duration::try_from(age).ok()),
        namespace,
        name,
    }
}
