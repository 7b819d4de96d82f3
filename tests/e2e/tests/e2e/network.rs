//! Names, Services and policies as pods see them. Profile: loopback.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Profile, SOON, curl, eventually};
use serde_json::{Value, json};

mod dns;
mod ingress;
mod names;
mod nodes;
mod policy;
mod services;

/// A cluster with the guest `web` in its registry.
fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("web", "web:v1")?;
    Ok(cluster)
}

fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = cluster.file("objects.json", &list.to_string())?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

/// A pod of the guest `web`, which says its name; `spec` is added to the pod's.
fn web(namespace: &str, name: &str, labels: Value, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "web:v1",
            "ports": [{"name": "http", "containerPort": 8080}],
            "env": [{"name": "POD", "value": name}],
        }]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// Waits until a pod is ready; its address.
fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<String> {
    cluster.kubectl(&[
        "-n",
        namespace,
        "wait",
        "--for=condition=Ready",
        "--timeout=60s",
        &format!("pod/{name}"),
    ])?;
    let pod = cluster.get(&["-n", namespace, "pod", name])?;
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

/// What a guest `web` at an address gets from a URL: the status and the body, or how it failed.
fn fetch(pod: &str, url: &str) -> Result<String> {
    curl(&format!("http://{pod}:8080/fetch?{url}"))
}

/// Waits until a guest's request is answered by a pod of this name.
fn reaches(pod: &str, url: &str, name: &str) -> Result<()> {
    eventually(&format!("{url} leads to {name}"), SOON, || {
        let answer = fetch(pod, url)?;
        ensure!(answer == format!("200 hello from {name}\n"), "{answer}");
        Ok(true)
    })
}
