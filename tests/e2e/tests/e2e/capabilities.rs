//! What a manifest grants to a wasm pod beyond WASI, and what is counted of its containers. Profile: loopback.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{curl, eventually};
use serde_json::{Value, json};

use super::pods::{SOON, apply, cluster, status};

/// A pod that carries out the steps of tests/guests' `store` with a ConfigMap and a volume mounted.
fn pod(node: &str, name: &str, annotations: Value, steps: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "nodeName": node, "restartPolicy": "Never",
            "containers": [{
                "name": "main", "image": "store:v1", "args": steps,
                "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, {"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "data", "emptyDir": {}}],
        },
    })
}

/// Row: runtime: wasi:config and wasi:keyvalue are granted by the manifest, and refused with the reason without it
/// Profile: loopback
#[test]
fn settings_and_values_are_granted_by_the_manifest() -> Result<()> {
    let (mut cluster, node) = cluster(&["store"])?;
    cluster.kubectl(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=blue",
        "--from-literal=size=9",
    ])?;
    let granted = json!({"coracle.dev/wasi-config": "/settings", "coracle.dev/wasi-keyvalue": "/data"});
    let half = json!({"coracle.dev/wasi-config": "/settings"});
    let steps =
        ["config,color", "config-all", "set,cart,apples,3", "increment,cart,apples,4", "get,cart,apples"];
    apply(&cluster, &[pod(&node, "granted", granted, &steps), pod(&node, "half", half, &steps)])?;
    status(&cluster, "granted", "ends", |s| s["phase"] == "Succeeded")?;
    let log = cluster.kubectl(&["logs", "granted"])?;
    let expected = "Ok(Some(\"blue\"))\nOk([(\"color\", \"blue\"), (\"size\", \"9\")])\nOk(())\nOk(7)\nOk(Some(\"7\"))\n";
    ensure!(log == expected, "{log}");
    eventually("the other is refused", SOON, || {
        let described = cluster.kubectl(&["describe", "pod", "half"])?;
        let words = ["wasi:keyvalue/", "was not granted", "coracle.dev/wasi-keyvalue"];
        Ok(words.iter().all(|words| described.contains(words)))
    })?;
    cluster.stop()
}

/// The value of a sample whose line has all of these words.
fn sample(text: &str, words: &[&str]) -> Option<u64> {
    let line =
        text.lines().find(|line| !line.starts_with('#') && words.iter().all(|word| line.contains(word)))?;
    line.rsplit(' ').nth(1)?.parse().ok()
}

/// Row: metrics: /metrics/cadvisor of a node tells CPU, memory, instances, requests, cold starts and latencies of each container
/// Profile: loopback
#[test]
fn a_node_tells_the_requests_of_each_container() -> Result<()> {
    let (mut cluster, node) = cluster(&["web"])?;
    apply(
        &cluster,
        &[json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "counted"},
            "spec": {"nodeName": node, "containers": [{"name": "web", "image": "web:v1", "ports": [{"containerPort": 8080}]}]},
        })],
    )?;
    let running = status(&cluster, "counted", "runs", |s| s["phase"] == "Running" && s["podIP"].is_string())?;
    let url = format!("http://{}:8080/", running["podIP"].as_str().context("an address")?);
    eventually("it answers", Duration::from_secs(20), || Ok(curl(&url).is_ok()))?;
    for _ in 0..4 {
        curl(&url)?;
    }
    let text = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/cadvisor")])?;
    let of = |name: &str, more: &[&str]| {
        let pod = [name, "pod=\"counted\"", "container=\"web\"", "namespace=\"default\""];
        sample(&text, &[&pod[..], more].concat()).with_context(|| format!("no {name} in\n{text}"))
    };
    let requests = of("coracle_container_requests_total{", &[])?;
    ensure!(requests >= 5, "{text}");
    ensure!(of("coracle_container_request_duration_milliseconds_count{", &[])? == requests, "{text}");
    let every = of("coracle_container_request_duration_milliseconds_bucket{", &["le=\"+Inf\""])?;
    ensure!(every == requests, "{text}");
    ensure!(of("container_memory_working_set_bytes{", &[])? > 0, "{text}");
    ensure!(of("coracle_container_instances{", &[])? >= 1, "{text}");
    of("coracle_container_cold_starts_total{", &[])?;
    of("coracle_container_cpu_usage_milliseconds_total{", &[])?;
    let types = [
        "# TYPE coracle_container_request_duration_milliseconds histogram",
        "# TYPE container_cpu_usage_seconds_total counter",
    ];
    ensure!(types.iter().all(|line| text.lines().any(|l| l == *line)), "{text}");
    cluster.stop()
}
