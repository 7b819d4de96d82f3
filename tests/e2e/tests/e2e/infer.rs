//! Inference in wasm pods: examples/gpu-infer. Profile: loopback.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Ended, eventually, root, succeed};
use serde_json::{Value, json};

use super::node::plugin;
use super::pods::{SOON, apply, cluster};

/// Drawings, what they are, and how sure the model is of it: numbers that ONNX Runtime 1.31 computed from the same file.
const DRAWINGS: [(&str, &str, f64); 3] = [
    ("...........#......#.#.....#.#....#...#...#####..................", "triangle", 0.971_842_8),
    ("..........####...#....#..#....#..#....#..#....#...####..........", "circle", 0.702_898_7),
    ("...##......##......##...################...##......##......##...", "cross", 0.999_996_4),
];

fn infer(url: &str, drawing: &str) -> Result<Value> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--data-binary", drawing]).arg(url);
    Ok(serde_json::from_str(&succeed(&mut curl)?)?)
}

/// Row: devices: a wasm pod that asks for a GPU has wasi:nn and serves inference (ONNX); one that does not ask is refused with the reason
/// Profile: loopback
#[test]
fn a_wasm_pod_with_a_gpu_infers() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["gpu-infer"])?;
    let plugin = plugin(&cluster)?;
    for manifest in ["01-deployment.yaml", "02-service.yaml"] {
        let text = std::fs::read_to_string(root().join("examples/gpu-infer/manifests").join(manifest))?;
        let file = cluster.file(manifest, &text)?;
        cluster.kubectl(&["apply", "-f", &file])?;
    }
    cluster.kubectl(&["rollout", "status", "deploy/gpu-infer", "--timeout=120s"])?;
    let service = cluster.get(&["service", "gpu-infer"])?;
    let ip = service["spec"]["clusterIP"].as_str().context("no clusterIP")?;
    let url = format!("http://{ip}:8080/infer");
    let first = DRAWINGS[0].0;
    eventually("it answers", SOON, || Ok(infer(&url, first).is_ok()))?;
    for (drawing, class, probability) in DRAWINGS {
        let answer = infer(&url, drawing)?;
        let sure = answer["probabilities"][class].as_f64().context("a probability")?;
        ensure!(answer["class"] == class && (sure - probability).abs() < 1e-3, "{class}: {answer}");
    }
    let log = cluster.kubectl(&["logs", "deploy/gpu-infer"])?;
    ensure!(log.contains("it runs on the CPU (devices of this container: fake-0)"), "{log}");

    // The same program without the GPU, and one that helps itself: both are refused.
    let pod = |name: &str, annotations: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "main", "image": "gpu-infer:v1"}]},
        })
    };
    apply(
        &cluster,
        &[pod("plain", json!({})), pod("greedy", json!({"coracle.dev/capabilities": "wasi:nn"}))],
    )?;
    for name in ["plain", "greedy"] {
        eventually(&format!("{name} is refused"), SOON, || {
            let described = cluster.kubectl(&["describe", "pod", name])?;
            Ok(["wasi:nn/", "was not granted", "nvidia.com/gpu"]
                .iter()
                .all(|words| described.contains(words)))
        })?;
        let status = cluster.get(&["pod", name])?["status"].take();
        ensure!(status["containerStatuses"][0]["ready"] == false, "{status:#}");
    }
    drop(plugin);
    cluster.stop()
}
