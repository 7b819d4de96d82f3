//! CPU and memory of the node, its pods and containers, as `/metrics/resource` (Prometheus text) and `/stats/summary`
//! (JSON); `/metrics` says how the agent does.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use coracle_cri_api::v1::{ContainerState, ContainerStats, NetworkInterfaceUsage, NetworkUsage, UInt64Value};
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::node::machine::{self, Usage};
use crate::runtime::label;
use crate::volumes::stats;

struct Row {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    cpu_nanos: u64,
    /// What is used now.
    cpu_rate: Option<u64>,
    memory: u64,
    rss: Option<u64>,
    /// Bytes and inodes of what it wrote to its own files.
    layer: Option<(u64, Option<u64>)>,
    /// Nanoseconds since 1970 of the start.
    started: i64,
}

/// What running containers use; `started` knows them. Those that have ended use nothing, and are not said to.
fn rows(stats: Vec<ContainerStats>, started: &HashMap<String, i64>) -> Vec<Row> {
    let row = |stat: ContainerStats| {
        let attributes = stat.attributes?;
        let started = *started.get(&attributes.id)?;
        let of = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        Some(Row {
            namespace: of(label::POD_NAMESPACE),
            pod: of(label::POD_NAME),
            uid: of(label::POD_UID),
            container: of(label::CONTAINER_NAME),
            cpu_nanos: stat.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value),
            cpu_rate: stat.cpu.and_then(|c| c.usage_nano_cores).map(|v| v.value),
            memory: stat.memory.as_ref().and_then(|m| m.working_set_bytes).map_or(0, |v| v.value),
            rss: stat.memory.and_then(|m| m.rss_bytes).map(|v| v.value),
            layer: stat
                .writable_layer
                .and_then(|layer| Some((layer.used_bytes?.value, layer.inodes_used.map(|v| v.value)))),
            started,
        })
    };
    stats.into_iter().filter_map(row).collect()
}

async fn read(shared: &Shared) -> Result<Vec<Row>, Response> {
    let runtime = &shared.context.runtime;
    let both = async { tokio::try_join!(runtime.stats(), runtime.containers(HashMap::new())) };
    let (stats, containers) = both.await.map_err(|e| {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the runtime does not answer: {}\n", e.message()))
            .into_response()
    })?;
    let running = containers.into_iter().filter(|c| c.state() == ContainerState::ContainerRunning);
    let started = running.map(|c| (c.id, c.created_at)).collect();
    Ok(rows(stats, &started))
}

/// What the containers of a pod use together; what is not known of each is not known of all.
#[derive(Clone, Copy)]
struct Sum {
    cpu_nanos: u64,
    cpu_rate: Option<u64>,
    memory: u64,
    rss: Option<u64>,
}

impl Default for Sum {
    fn default() -> Self {
        Self { cpu_nanos: 0, cpu_rate: Some(0), memory: 0, rss: Some(0) }
    }
}

/// Sums by namespace and pod.
fn pods(rows: &[Row]) -> BTreeMap<(&str, &str), Sum> {
    let mut pods = BTreeMap::new();
    for row in rows {
        let sum: &mut Sum = pods.entry((row.namespace.as_str(), row.pod.as_str())).or_default();
        let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        *sum = Sum {
            cpu_nanos: sum.cpu_nanos.saturating_add(row.cpu_nanos),
            cpu_rate: both(sum.cpu_rate, row.cpu_rate),
            memory: sum.memory.saturating_add(row.memory),
            rss: both(sum.rss, row.rss),
        };
    }
    pods
}

/// Bytes that the containers of a pod wrote to their own files.
fn layers(rows: &[Row], uid: &str) -> u64 {
    let layers = rows.iter().filter(|row| row.uid == uid).filter_map(|row| row.layer);
    layers.fold(0, |sum, (bytes, _)| sum.saturating_add(bytes))
}

/// Prometheus text, one family at a time.
struct Text {
    text: String,
    /// Milliseconds since 1970.
    now: i64,
}

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str, samples: impl Iterator<Item = (String, f64)>) {
        let _ = writeln!(self.text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.text, "{name}{labels} {value} {}", self.now);
        }
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn resource_text(rows: &[Row], node: Usage, now: i64) -> String {
    let mut text = Text { text: String::new(), now };
    let container =
        |r: &Row| format!("{{container={:?},namespace={:?},pod={:?}}}", r.container, r.namespace, r.pod);
    let samples = |value: fn(&Row) -> f64| rows.iter().map(move |r| (container(r), value(r)));
    text.family(
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the container in core-seconds",
        samples(|r| seconds(r.cpu_nanos)),
    );
    text.family(
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set of the container in bytes",
        samples(|r| r.memory as f64),
    );
    text.family(
        "container_start_time_seconds",
        "gauge",
        "Start time of the container since unix epoch in seconds",
        samples(|r| r.started as f64 / 1e9),
    );
    let none = |value: f64| std::iter::once((String::new(), value));
    text.family(
        "node_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the node in core-seconds",
        none(seconds(node.cpu_nanos)),
    );
    text.family(
        "node_memory_working_set_bytes",
        "gauge",
        "Current working set of the node in bytes",
        none(node.memory as f64),
    );
    let pods = pods(rows);
    let pod = |(namespace, pod): &(&str, &str)| format!("{{namespace={namespace:?},pod={pod:?}}}");
    text.family(
        "pod_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods.iter().map(|(key, sum)| (pod(key), seconds(sum.cpu_nanos))),
    );
    text.family(
        "pod_memory_working_set_bytes",
        "gauge",
        "Current working set of the pod in bytes",
        pods.iter().map(|(key, sum)| (pod(key), sum.memory as f64)),
    );
    text.family(
        "resource_scrape_error",
        "gauge",
        "1 if there was an error while getting container metrics, 0 otherwise",
        none(0.0),
    );
    text.text
}

const PROMETHEUS: [(&str, &str); 1] = [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")];

/// `/metrics/resource`.
pub async fn resource(State(shared): State<Shared>) -> Response {
    let rows = match read(&shared).await {
        Ok(rows) => rows,
        Err(response) => return response,
    };
    let text = resource_text(&rows, machine::usage(), Timestamp::now().as_millisecond());
    (PROMETHEUS, text).into_response()
}

/// `/metrics/probes`.
pub async fn probes(State(shared): State<Shared>) -> Response {
    (PROMETHEUS, shared.context.probes.text()).into_response()
}

/// The kubelet's summary, with what is known of containers.
pub async fn summary(State(shared): State<Shared>) -> Response {
    let rows = match read(&shared).await {
        Ok(rows) => rows,
        Err(response) => return response,
    };
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let list = shared.pods.list();
    let by_uid: HashMap<&str, _> =
        list.iter().filter_map(|pod| Some((pod.metadata.uid.as_deref()?, pod))).collect();
    let networks: HashMap<_, _> =
        shared.context.runtime.networks().await.unwrap_or_default().into_iter().collect();
    let folder = |row: &Row| {
        let pod = by_uid.get(row.uid.as_str())?;
        Some(shared.context.log_directory(pod).join(&row.container))
    };
    let folders: Vec<_> = rows.iter().map(folder).collect();
    let logs = tokio::task::spawn_blocking(move || {
        let bytes = |path: Option<PathBuf>| path.map(|path| crate::volumes::used::below(&path));
        folders.into_iter().map(bytes).collect::<Vec<_>>()
    });
    let logs = logs.await.unwrap_or_default();
    let sums = pods(&rows);
    let mut all = BTreeMap::<&str, serde_json::Value>::new();
    for (at, row) in rows.iter().enumerate() {
        let sum = sums.get(&(row.namespace.as_str(), row.pod.as_str())).copied().unwrap_or_default();
        let pod = all.entry(&row.uid).or_insert_with(|| {
            let started =
                by_uid.get(row.uid.as_str()).and_then(|pod| pod.status.as_ref()?.start_time.clone());
            known(json!({
                "podRef": {"name": row.pod, "namespace": row.namespace, "uid": row.uid}, "startTime": started,
                "cpu": cpu(&now, sum.cpu_nanos, sum.cpu_rate), "memory": memory(&now, sum.memory, sum.rss),
                "network": networks.get(&row.uid).map(|of| network(&now, of)), "containers": [],
            }))
        });
        if let Some(list) = pod.get_mut("containers").and_then(|c| c.as_array_mut()) {
            list.push(container(&now, row, logs.get(at).copied().flatten()));
        }
    }
    let mut volumes = disk(&shared).await;
    for (uid, stats) in stats::claimed(&shared.context, &shared.pods.list()).await {
        volumes.entry(uid).or_default().1.extend(stats.iter().map(|one| one.summary(&now)));
    }
    for (uid, (sum, list)) in &volumes {
        if let Some(pod) = all.get_mut(uid.as_str()).and_then(|p| p.as_object_mut()) {
            let used = sum.saturating_add(layers(&rows, uid));
            pod.insert("ephemeral-storage".into(), json!({"time": now, "usedBytes": used}));
            pod.insert("volume".into(), json!(list));
        }
    }
    let node = machine::usage();
    let rate = shared.context.node_cpu.look(node.cpu_nanos, Instant::now());
    let mut node_memory = memory(&now, node.memory, None);
    if let Some(fields) = node_memory.as_object_mut() {
        fields.insert("availableBytes".into(), json!(node.available));
    }
    let images = shared.context.runtime.image_filesystem().await.ok().flatten();
    let mut image_fs = filesystem(images.as_ref().map(|(path, _)| path.as_ref()), &now);
    if let (Some(fields), Some((_, used))) = (image_fs.as_object_mut(), &images) {
        fields.insert("usedBytes".into(), json!(used));
    }
    let node = json!({
        "nodeName": shared.context.node_name, "cpu": cpu(&now, node.cpu_nanos, rate), "memory": node_memory,
        "fs": filesystem(Some(&shared.context.root), &now), "runtime": {"imageFs": image_fs},
    });
    axum::Json(json!({"node": node, "pods": all.into_values().collect::<Vec<_>>()})).into_response()
}

/// Without the members that are not known.
fn known(mut value: serde_json::Value) -> serde_json::Value {
    if let Some(members) = value.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    value
}

fn cpu(now: &str, nanos: u64, rate: Option<u64>) -> serde_json::Value {
    known(json!({"time": now, "usageNanoCores": rate, "usageCoreNanoSeconds": nanos}))
}

fn memory(now: &str, bytes: u64, rss: Option<u64>) -> serde_json::Value {
    known(json!({"time": now, "workingSetBytes": bytes, "rssBytes": rss}))
}

/// One container; `logs` is the bytes of its logs.
fn container(now: &str, row: &Row, logs: Option<u64>) -> serde_json::Value {
    let started = Timestamp::from_second(row.started / 1_000_000_000).ok();
    known(json!({
        "name": row.container, "startTime": started.map(|at| at.to_string()),
        "cpu": cpu(now, row.cpu_nanos, row.cpu_rate), "memory": memory(now, row.memory, row.rss),
        "rootfs": row.layer.map(|(bytes, inodes)| known(json!({"time": now, "usedBytes": bytes, "inodesUsed": inodes}))),
        "logs": logs.map(|bytes| json!({"time": now, "usedBytes": bytes})),
    }))
}

fn network(now: &str, of: &NetworkUsage) -> serde_json::Value {
    let interface = |of: &NetworkInterfaceUsage| {
        let value = |count: Option<UInt64Value>| count.map(|v| v.value);
        known(json!({
            "name": of.name, "rxBytes": value(of.rx_bytes), "rxErrors": value(of.rx_errors),
            "txBytes": value(of.tx_bytes), "txErrors": value(of.tx_errors),
        }))
    };
    let main = of.default_interface.as_ref();
    let mut made = main.map_or_else(|| json!({}), interface);
    if let Some(members) = made.as_object_mut() {
        members.insert("time".into(), json!(now));
        members.insert("interfaces".into(), main.into_iter().chain(&of.interfaces).map(interface).collect());
    }
    made
}

/// A filesystem in the summary's words.
fn filesystem(path: Option<&std::path::Path>, now: &str) -> serde_json::Value {
    let Some((space, files)) = path.and_then(crate::eviction::signals::filesystem) else { return json!({}) };
    json!({
        "time": now, "availableBytes": space.available, "capacityBytes": space.capacity,
        "usedBytes": space.capacity.saturating_sub(space.available),
        "inodesFree": files.available, "inodes": files.capacity,
        "inodesUsed": files.capacity.saturating_sub(files.available),
    })
}

/// By a pod's uid: the bytes of its volumes and logs on this node's disk, and each emptyDir.
async fn disk(shared: &Shared) -> HashMap<String, (u64, Vec<serde_json::Value>)> {
    use crate::volumes::{self, PodDir, used};
    let (pods, context) = (shared.pods.list(), shared.context.clone());
    let measured = tokio::task::spawn_blocking(move || {
        let one = |pod: &k8s_openapi::api::core::v1::Pod| {
            let uid = pod.metadata.uid.clone()?;
            let dir = PodDir::new(&context.root, &uid)?;
            let mut sum = used::below(&context.log_directory(pod));
            let mut list = Vec::new();
            for volume in volumes::volumes(pod).iter().filter(|v| v.empty_dir.is_some()) {
                let bytes = dir.volume(volume).map_or(0, |path| used::below(&path));
                list.push(json!({"name": volume.name, "usedBytes": bytes}));
                sum = if volumes::is_on_disk(volume) { sum.saturating_add(bytes) } else { sum };
            }
            Some((uid, (sum, list)))
        };
        pods.iter().filter_map(|pod| one(pod)).collect()
    });
    measured.await.unwrap_or_default()
}

/// `/metrics`: how many pods and containers there are.
pub async fn agent(State(shared): State<Shared>) -> Response {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "# TYPE kubelet_node_name gauge\nkubelet_node_name{{node={:?}}} 1",
        shared.context.node_name
    );
    let _ = writeln!(
        text,
        "# TYPE kubelet_desired_pods gauge\nkubelet_desired_pods {}",
        shared.pods.list().len()
    );
    let runtime = &shared.context.runtime;
    let both = async { tokio::try_join!(runtime.sandboxes(), runtime.containers(HashMap::new())) };
    match both.await {
        Ok((sandboxes, containers)) => {
            let ready = sandboxes.iter().filter(|s| s.state == 0).count();
            let _ = writeln!(text, "# TYPE kubelet_running_pods gauge\nkubelet_running_pods {ready}");
            let _ = writeln!(text, "# TYPE kubelet_running_containers gauge");
            for (state, name) in [(0, "created"), (1, "running"), (2, "exited"), (3, "unknown")] {
                let count = containers.iter().filter(|c| c.state == state).count();
                let _ = writeln!(text, "kubelet_running_containers{{container_state={name:?}}} {count}");
            }
            let _ = writeln!(text, "# TYPE kubelet_runtime_errors gauge\nkubelet_runtime_errors 0");
        }
        Err(_) => {
            let _ = writeln!(text, "# TYPE kubelet_runtime_errors gauge\nkubelet_runtime_errors 1");
        }
    }
    text += &stats::metrics(&stats::claimed(&shared.context, &shared.pods.list()).await);
    (PROMETHEUS, text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_say_what_is_known() {
        let row = Row {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: "u".into(),
            container: "a".into(),
            cpu_nanos: 9,
            cpu_rate: Some(3),
            memory: 8,
            rss: Some(7),
            layer: Some((6, None)),
            started: 5_000_000_000,
        };
        assert_eq!(layers(std::slice::from_ref(&row), "u"), 6);
        assert_eq!(layers(std::slice::from_ref(&row), "another"), 0);
        let expected = json!({
            "name": "a", "startTime": "1970-01-01T00:00:05Z",
            "cpu": {"time": "now", "usageNanoCores": 3, "usageCoreNanoSeconds": 9},
            "memory": {"time": "now", "workingSetBytes": 8, "rssBytes": 7},
            "rootfs": {"time": "now", "usedBytes": 6}, "logs": {"time": "now", "usedBytes": 4},
        });
        assert_eq!(container("now", &row, Some(4)), expected);
        let less = container("now", &Row { cpu_rate: None, rss: None, layer: None, ..row }, None);
        assert_eq!(less["cpu"], json!({"time": "now", "usageCoreNanoSeconds": 9}));
        assert!(less.get("rootfs").is_none() && less.get("logs").is_none());
        let eth = NetworkInterfaceUsage {
            name: "eth0".into(),
            rx_bytes: Some(UInt64Value { value: 5 }),
            ..Default::default()
        };
        let of = NetworkUsage { default_interface: Some(eth), ..Default::default() };
        let interface = json!({"name": "eth0", "rxBytes": 5});
        let expected = json!({"time": "now", "name": "eth0", "rxBytes": 5, "interfaces": [interface]});
        assert_eq!(network("now", &of), expected);
    }

    #[test]
    fn the_text_that_metrics_clients_read() {
        let row = |container: &str, cpu_nanos, memory| Row {
            namespace: "ns".into(),
            pod: "p".into(),
            uid: "u".into(),
            container: container.into(),
            cpu_nanos,
            cpu_rate: None,
            memory,
            rss: None,
            layer: None,
            started: 5_000_000_000,
        };
        let rows = [row("a", 1_500_000_000, 10), row("b", 500_000_000, 20)];
        let node = Usage { cpu_nanos: 7_000_000_000, memory: 99, available: 1 };
        let text = resource_text(&rows, node, 1234);
        for line in [
            "container_cpu_usage_seconds_total{container=\"a\",namespace=\"ns\",pod=\"p\"} 1.5 1234",
            "container_memory_working_set_bytes{container=\"b\",namespace=\"ns\",pod=\"p\"} 20 1234",
            "container_start_time_seconds{container=\"b\",namespace=\"ns\",pod=\"p\"} 5 1234",
            "node_cpu_usage_seconds_total 7 1234",
            "node_memory_working_set_bytes 99 1234",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 2 1234",
            "pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"} 30 1234",
            "resource_scrape_error 0 1234",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
