//! What keeps pods running and where they run: the mission's rows of scheduler, controllers, ReplicaSets, Deployments,
//! StatefulSets, DaemonSets, Jobs, CronJobs and autoscaling. Profile: loopback.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, eventually};
use serde_json::{Value, json};

mod annotations;
mod autoscaling;
mod controllers;
mod deployments;
mod jobs;
mod placement;
mod sets;

/// Starting pods and waiting for each other takes its time on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Applies a manifest of the mission.
fn manifest(cluster: &Cluster, name: &str, text: &str) -> Result<()> {
    let file = cluster.file(name, text)?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

/// Waits until an object is as wanted; returns it.
fn until(cluster: &Cluster, what: &[&str], wanted: &str, met: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    eventually(&format!("{}: {wanted}", what.join(" ")), PATIENCE, || {
        last = cluster.get(what)?;
        Ok(met(&last))
    })
    .with_context(|| {
        let described = [["describe"].as_slice(), what].concat();
        format!("{:#}\n{}", last["status"], cluster.kubectl(&described).unwrap_or_default())
    })?;
    Ok(last)
}

/// The pods of a label.
fn pods(cluster: &Cluster, label: &str) -> Result<Vec<Value>> {
    Ok(cluster.get(&["pods", "-l", label])?["items"].as_array().context("items")?.clone())
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// A node that nobody runs: pods are bound to it and go no further.
fn hollow_node(cluster: &Cluster, name: &str, labels: Value, taints: Value, more: Value) -> Result<()> {
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
    });
    node["metadata"]["labels"]["kubernetes.io/hostname"] = name.into();
    let file = cluster.file(&format!("{name}.json"), &node.to_string())?;
    cluster.kubectl(&["create", "-f", &file])?;
    let mut room = json!({"cpu": "4", "memory": "8Gi", "pods": "20"});
    for (key, value) in more.as_object().into_iter().flatten() {
        room[key] = value.clone();
    }
    let status = json!({"status": {"capacity": room, "allocatable": room, "conditions": [
        {"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": now()?, "lastTransitionTime": now()?},
    ]}});
    cluster.kubectl(&[
        "patch",
        "node",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &status.to_string(),
    ])?;
    until(cluster, &["node", name], "has no taint of the node controller's", |node| {
        !node["spec"]["taints"].to_string().contains("node.kubernetes.io")
    })
    .map(drop)
}

fn now() -> Result<String> {
    let out = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output()?;
    ensure!(out.status.success(), "date failed");
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}
