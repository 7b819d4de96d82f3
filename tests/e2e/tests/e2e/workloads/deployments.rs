//! ReplicaSets and Deployments, with the manifests of the mission.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually, load};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, manifest, name, pods, until};

/// A cluster whose pods may listen on port 80.
fn cluster() -> Result<Cluster> {
    Cluster::start(Profile::LoopbackAsIs)
}

/// Row: ReplicaSet: three pods are kept; a killed one is replaced; describe tells
/// Profile: loopback
#[test]
fn mission_m10_three_pods_are_kept() -> Result<Ended> {
    let mut cluster = cluster()?;
    cluster.push("web", "gcr.io/google_samples/gb-frontend:v3")?;
    manifest(&cluster, "07.yaml", include_str!("07-replicaset.yaml"))?;
    let full = |rs: &Value| rs["status"]["readyReplicas"] == 3;
    until(&cluster, &["rs", "frontend"], "has three ready pods", full)?;
    let before = pods(&cluster, "tier=frontend")?;
    ensure!(before.len() == 3, "{} pods", before.len());
    let victim = name(before.first().context("a pod")?);
    cluster.kubectl(&["delete", "pod", &victim])?;
    eventually("another pod takes its place", PATIENCE, || {
        let now = pods(&cluster, "tier=frontend")?;
        Ok(now.len() == 3 && now.iter().all(|pod| name(pod) != victim))
    })?;
    until(&cluster, &["rs", "frontend"], "has three ready pods again", full)?;
    let described = cluster.kubectl(&["describe", "rs/frontend"])?;
    has(
        &described,
        &[
            "Replicas:     3 current / 3 desired",
            "Pods Status:  3 Running",
            "SuccessfulCreate",
            "Created pod: frontend-",
        ],
    )?;
    cluster.kubectl(&["delete", "rs", "frontend"])?;
    eventually("its pods go with it", PATIENCE, || Ok(pods(&cluster, "tier=frontend")?.is_empty()))?;
    cluster.stop()
}

fn images(cluster: &Cluster, label: &str) -> Result<Vec<String>> {
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    Ok(pods(cluster, label)?.iter().map(image).collect())
}

/// Row: Deployment: rolls out, updates without downtime under load, rolls back, scales, pauses, resumes, keeps a history
/// Profile: loopback
#[test]
fn mission_m11_deployments_roll_out_and_back() -> Result<Ended> {
    let mut cluster = cluster()?;
    for image in ["nginx:1.14.2", "nginx:1.16.1", "ml-serving:1.0"] {
        cluster.push("web", image)?;
    }
    manifest(&cluster, "05.yaml", include_str!("05-nginx-deployment.yaml"))?;
    let rolled = || cluster.kubectl(&["rollout", "status", "deploy/nginx-deployment", "--timeout=60s"]);
    has(&rolled()?, &["successfully rolled out"])?;
    cluster.kubectl(&["expose", "deploy/nginx-deployment", "--name=nginx"])?;
    let address = cluster.kubectl(&["get", "svc", "nginx", "-o", "jsonpath={.spec.clusterIP}:80"])?;
    eventually("the Service answers", PATIENCE, || {
        coracle_e2e::curl(&format!("http://{address}/")).map(|_| true)
    })?;

    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Runtime::new()?;
    let running = runtime.spawn(load::run(address.parse()?, 4, 500, stop.clone()));
    cluster.kubectl(&["set", "image", "deploy/nginx-deployment", "nginx=nginx:1.16.1"])?;
    rolled()?;
    eventually("only pods of the new image", PATIENCE, || {
        let images = images(&cluster, "app=nginx")?;
        Ok(images.len() == 3 && images.iter().all(|image| image == "nginx:1.16.1"))
    })?;
    let history = cluster.kubectl(&["rollout", "history", "deploy/nginx-deployment"])?;
    has(&history, &["REVISION", "1", "2"])?;
    cluster.kubectl(&["rollout", "undo", "deploy/nginx-deployment", "--to-revision=1"])?;
    rolled()?;
    eventually("the old image is back", PATIENCE, || {
        Ok(images(&cluster, "app=nginx")?.iter().all(|image| image == "nginx:1.14.2"))
    })?;
    stop.store(true, Ordering::Relaxed);
    let outcome = runtime.block_on(running)?;
    ensure!(outcome.failures.is_empty(), "{} answered; failures: {:?}", outcome.answered, outcome.failures);

    cluster.kubectl(&["scale", "deploy/nginx-deployment", "--replicas=5"])?;
    rolled()?;
    ensure!(images(&cluster, "app=nginx")?.len() == 5);
    cluster.kubectl(&["rollout", "pause", "deploy/nginx-deployment"])?;
    cluster.kubectl(&["set", "image", "deploy/nginx-deployment", "nginx=nginx:1.16.1"])?;
    until(&cluster, &["deploy", "nginx-deployment"], "has seen the change", |d| {
        d["status"]["observedGeneration"] == d["metadata"]["generation"]
    })?;
    ensure!(images(&cluster, "app=nginx")?.iter().all(|image| image == "nginx:1.14.2"), "paused");
    cluster.kubectl(&["rollout", "resume", "deploy/nginx-deployment"])?;
    rolled()?;
    has(
        &cluster.kubectl(&["describe", "deploy", "nginx-deployment"])?,
        &["ScalingReplicaSet", "MinimumReplicasAvailable"],
    )?;

    manifest(&cluster, "11.yaml", include_str!("11-ml-serving.yaml"))?;
    has(
        &cluster.kubectl(&["rollout", "status", "deploy/ml-model-serving", "--timeout=60s"])?,
        &["successfully rolled out"],
    )?;
    let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=ml-model-svc"])?;
    let endpoints = slices["items"][0]["endpoints"].as_array().context("endpoints")?;
    ensure!(endpoints.len() == 10, "{} endpoints", endpoints.len());
    cluster.stop()
}

/// Row: disruption: a budget refuses evictions that would leave too few, and drain waits for it
/// Profile: loopback
#[test]
fn budgets_hold_back_evictions() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("web", "web:v1")?;
    cluster.kubectl(&["create", "deployment", "web", "--image=web:v1", "--replicas=2"])?;
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"])?;
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}},
    });
    apply(&cluster, &[budget])?;
    until(&cluster, &["pdb", "web"], "knows its pods", |b| b["status"]["currentHealthy"] == 2)?;
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let drain = ["drain", &node, "--ignore-daemonsets", "--timeout=3s"];
    has(
        &cluster.kubectl_fails(&drain)?,
        &["Cannot evict pod as it would violate the pod's disruption budget"],
    )?;
    cluster.kubectl(&["patch", "pdb", "web", "--type=merge", "-p", r#"{"spec":{"minAvailable":0}}"#])?;
    until(&cluster, &["pdb", "web"], "lets them go", |b| b["status"]["disruptionsAllowed"] == 2)?;
    cluster.kubectl(&["drain", &node, "--ignore-daemonsets", "--timeout=60s"])?;
    has(&cluster.kubectl(&["get", "nodes"])?, &["SchedulingDisabled"])?;
    cluster.kubectl(&["uncordon", &node])?;
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"])?;
    cluster.stop()
}
