//! Containers of a pod that import what others of it export: examples/linked as its README has it. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Ended, eventually, root, succeed};
use serde_json::json;

use super::pods::{SOON, apply, cluster, status};

/// Status and body of a request with a token to the pod.
fn ask(ip: &str, token: &str, path: &str) -> Result<String> {
    let mut curl = std::process::Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "-w", "%{http_code}", "-H"]);
    succeed(curl.arg(format!("authorization: Bearer {token}")).arg(format!("http://{ip}:8080/{path}")))
}

/// Row: runtime: a container imports an interface that a sidecar of its pod exports, and calls it without a connection
/// Profile: loopback
#[test]
fn a_sidecar_is_a_function_call() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["linked-auth", "linked-web"])?;
    for manifest in ["01-tokens.yaml", "02-pod.yaml"] {
        let text = std::fs::read_to_string(root().join("examples/linked/manifests").join(manifest))?;
        let file = cluster.file(manifest, &text)?;
        cluster.kubectl(&["apply", "-f", &file])?;
    }
    let unlinked = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "unlinked"},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "linked-web:v1"}]},
    });
    let alone = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "alone", "annotations": {"coracle.dev/links": "web=auth"}},
        "spec": {"nodeName": node, "containers": [{"name": "web", "image": "linked-web:v1"}]},
    });
    apply(&cluster, &[unlinked, alone])?;
    let ready = status(&cluster, "linked", "is ready", |s| {
        s["containerStatuses"][0]["ready"] == true && s["initContainerStatuses"][0]["started"] == true
    })?;
    let ip = ready["podIP"].as_str().unwrap_or_default().to_owned();
    let said = ask(&ip, "s3cret", "read/write")?;
    ensure!(said == "hello ada of admins and users: read, write in linked\n200", "{said}");
    ensure!(ask(&ip, "stale", "")?.ends_with("403") && ask(&ip, "", "")?.ends_with("401"));
    eventually("the sidecar's own log", SOON, || {
        Ok(cluster.kubectl(&["logs", "linked", "-c", "auth"])?.contains("ada: 2 actions"))
    })?;

    for (pod, words) in [
        ("unlinked", ["the component imports demo:auth/tokens@1.0.0", "coracle.dev/links"]),
        ("alone", ["container auth, which is not there yet", "restartPolicy Always"]),
    ] {
        eventually("a refusal by name", SOON, || {
            let described = cluster.kubectl(&["describe", "pod", pod])?;
            Ok(words.iter().all(|words| described.contains(words)))
        })?;
    }
    cluster.stop()
}
