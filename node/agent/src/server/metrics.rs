//! CPU and memory of containers, as `/metrics/resource` (Prometheus text) and `/stats/summary` (JSON).

use std::fmt::Write as _;

use coracle_cri_api::v1::ContainerStats;

use super::*;
use crate::runtime::label;

struct Row {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    cpu_nanos: u64,
    memory: u64,
}

fn rows(stats: Vec<ContainerStats>) -> Vec<Row> {
    let row = |stat: ContainerStats| {
        let labels = stat.attributes?.labels;
        let of = |key: &str| labels.get(key).cloned().unwrap_or_default();
        Some(Row {
            namespace: of(label::POD_NAMESPACE),
            pod: of(label::POD_NAME),
            uid: of(label::POD_UID),
            container: of(label::CONTAINER_NAME),
            cpu_nanos: stat.cpu.and_then(|c| c.usage_core_nano_seconds).map_or(0, |v| v.value),
            memory: stat.memory.and_then(|m| m.working_set_bytes).map_or(0, |v| v.value),
        })
    };
    stats.into_iter().filter_map(row).collect()
}

async fn read(shared: &Shared) -> Result<Vec<Row>, Response> {
    let stats = shared.context.runtime.stats().await;
    stats.map(rows).map_err(|e| {
        (StatusCode::SERVICE_UNAVAILABLE, format!("the runtime does not answer: {}\n", e.message()))
            .into_response()
    })
}

/// Prometheus text.
pub async fn resource(State(shared): State<Shared>) -> Response {
    let rows = match read(&shared).await {
        Ok(rows) => rows,
        Err(response) => return response,
    };
    let mut text = String::new();
    let labels =
        |r: &Row| format!("container=\"{}\",namespace=\"{}\",pod=\"{}\"", r.container, r.namespace, r.pod);
    text.push_str("# TYPE container_cpu_usage_seconds_total counter\n");
    for row in &rows {
        let seconds = row.cpu_nanos as f64 / 1e9;
        let _ = writeln!(text, "container_cpu_usage_seconds_total{{{}}} {seconds}", labels(row));
    }
    text.push_str("# TYPE container_memory_working_set_bytes gauge\n");
    for row in &rows {
        let _ = writeln!(text, "container_memory_working_set_bytes{{{}}} {}", labels(row), row.memory);
    }
    ([("Content-Type", "text/plain; version=0.0.4")], text).into_response()
}

/// The kubelet's summary, with what is known of containers.
pub async fn summary(State(shared): State<Shared>) -> Response {
    let rows = match read(&shared).await {
        Ok(rows) => rows,
        Err(response) => return response,
    };
    let mut pods = std::collections::BTreeMap::<String, (serde_json::Value, Vec<serde_json::Value>)>::new();
    for row in rows {
        let reference = json!({"name": row.pod, "namespace": row.namespace, "uid": row.uid});
        let entry = pods.entry(row.uid).or_insert((reference, Vec::new()));
        entry.1.push(json!({
            "name": row.container,
            "cpu": {"usageCoreNanoSeconds": row.cpu_nanos},
            "memory": {"workingSetBytes": row.memory},
        }));
    }
    let pods: Vec<_> = pods
        .into_values()
        .map(|(pod, containers)| json!({"podRef": pod, "containers": containers}))
        .collect();
    axum::Json(json!({"node": {"nodeName": shared.context.node_name}, "pods": pods})).into_response()
}
