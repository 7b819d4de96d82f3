//! HorizontalPodAutoscalers, and what they go by: `kubectl top`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually, load};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, until};

/// Row: autoscaling: a Deployment follows its CPU use up under load and down after it; kubectl top shows it
/// Profile: loopback
#[test]
fn mission_m27_pods_follow_the_load() -> Result<Ended> {
    let flags = ["--horizontal-pod-autoscaler-sync-period=1", "--metric-resolution=2"];
    let mut cluster = Cluster::start_with(Profile::Loopback, &flags)?;
    cluster.push("web", "web:v1")?;
    let web = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{
                    "name": "c", "image": "web:v1", "ports": [{"containerPort": 8080}],
                    "resources": {"requests": {"cpu": "20m", "memory": "16Mi"}},
                }]},
            },
        },
    });
    apply(&cluster, &[web])?;
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"])?;
    cluster.kubectl(&["expose", "deploy/web", "--port=80", "--target-port=8080"]).ok();
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1, "maxReplicas": 3,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 4}},
        },
    });
    apply(&cluster, &[scaler])?;
    eventually("kubectl top knows the pod", PATIENCE, || {
        has(&cluster.kubectl(&["top", "pods", "-l", "app=web"])?, &["NAME", "CPU(cores)", "web-", "Mi"])
            .map(|()| true)
    })?;
    has(&cluster.kubectl(&["top", "pods", "--containers"])?, &["web-", " c "])?;
    has(&cluster.kubectl(&["top", "nodes"])?, &["node-1", "%"])?;
    until(&cluster, &["hpa", "web"], "has its metric", |h| active(h, "True"))?;

    let address =
        cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}"])?;
    let (stop, runtime) = (Arc::new(AtomicBool::new(false)), tokio::runtime::Runtime::new()?);
    let running = runtime.spawn(load::run(format!("{address}:8080").parse()?, 4, 1, stop.clone()));
    until(&cluster, &["hpa", "web"], "scales up", |h| h["status"]["desiredReplicas"].as_i64() > Some(1))?;
    until(&cluster, &["deploy", "web"], "has more pods", |d| {
        d["status"]["readyReplicas"].as_i64() > Some(1)
    })?;
    stop.store(true, Ordering::Relaxed);
    let outcome = runtime.block_on(running)?;
    ensure!(outcome.failures.is_empty(), "{:?}", outcome.failures);
    until(&cluster, &["deploy", "web"], "is one pod again", |d| {
        d["spec"]["replicas"] == 1 && d["status"]["replicas"] == 1
    })?;
    let told = cluster.kubectl(&["describe", "hpa", "web"])?;
    has(
        &told,
        &[
            "SuccessfulRescale",
            "cpu resource utilization (percentage of request) above target",
            "All metrics below target",
        ],
    )?;
    refused(&cluster)?;
    cluster.stop()
}

fn active(scaler: &Value, status: &str) -> bool {
    let all = scaler["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().any(|c| c["type"] == "ScalingActive" && c["status"] == status)
}

/// What cannot be measured is said.
fn refused(cluster: &Cluster) -> Result<()> {
    let scaler = json!({
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "queue"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 3,
            "metrics": [{"type": "External", "external": {"metric": {"name": "depth"}, "target": {"type": "AverageValue", "averageValue": "5"}}}],
        },
    });
    apply(cluster, &[scaler])?;
    let queue = until(cluster, &["hpa", "queue"], "says what it lacks", |h| active(h, "False"))?;
    let all = queue["status"]["conditions"].as_array().context("conditions")?;
    ensure!(all.iter().any(|c| c["reason"] == "FailedGetExternalMetric"), "{all:#?}");
    Ok(())
}
