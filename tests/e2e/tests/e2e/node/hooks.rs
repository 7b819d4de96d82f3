//! What a slow hook of one container does not hold up. Profile: loopback.

use super::*;

/// Seconds.
const HOOK: u32 = 55;

/// A server that says when it is ready, and beside it a container that waits in its hook.
fn beside_a_slow_hook(node: &str) -> Value {
    let probe = json!({"httpGet": {"path": "/is/ready", "port": 8080}, "periodSeconds": 1});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slow"},
        "spec": {
            // A hook may not sleep for longer than its pod may take to end.
            "nodeName": node, "terminationGracePeriodSeconds": HOOK + 5,
            "containers": [
                {"name": "web", "image": "switch:v1", "ports": [{"containerPort": 8080}], "readinessProbe": probe,
                 "volumeMounts": [{"name": "state", "mountPath": "/state"}]},
                {"name": "hooked", "image": "steps:v1", "args": ["sleep 600000"],
                 "lifecycle": {"postStart": {"sleep": {"seconds": HOOK}}}},
            ],
            "volumes": [{"name": "state", "emptyDir": {}}],
        },
    })
}

fn is_web_ready(status: &Value) -> bool {
    let all = status["containerStatuses"].as_array().into_iter().flatten();
    all.into_iter().any(|one| one["name"] == "web" && one["ready"] == true)
}

/// Row: pods: a container that waits in its postStart hook keeps no other from being ready, and its pod from no deletion
/// Profile: loopback
#[test]
fn a_slow_hook_holds_up_neither_readiness_nor_deletion() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["switch", "steps"])?;
    apply(&cluster, &[beside_a_slow_hook(&node)])?;
    eventually("the hook has begun", SOON, || {
        Ok(cluster.kubectl(&["get", "events"])?.contains("Container started: hooked"))
    })
    .with_context(|| describe(&cluster, "pod", "slow"))?;
    let hook = Instant::now();
    let told = status(&cluster, "slow", "has an address", |status| status["podIP"].is_string())?;
    ensure!(!is_web_ready(&told), "ready before its probe: {told:#}");
    let url = format!("http://{}:8080/on/ready", told["podIP"].as_str().context("podIP")?);
    cluster.curl(&url)?;
    let told = status(&cluster, "slow", "web is ready", is_web_ready)?;
    ensure!(hook.elapsed() < Duration::from_secs(20), "told after {:?}: {told:#}", hook.elapsed());

    let began = Instant::now();
    cluster.kubectl(&["delete", "pod", "slow", "--grace-period=1", "--timeout=30s"])?;
    ensure!(began.elapsed() < Duration::from_secs(15), "its deletion took {:?}", began.elapsed());
    ensure!(hook.elapsed() < Duration::from_secs(HOOK.into()), "the hook was over: {:?}", hook.elapsed());
    cluster.stop()
}
