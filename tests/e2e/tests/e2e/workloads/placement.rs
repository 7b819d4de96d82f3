//! Where pods go, and why they wait.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, hollow_node, until};

fn pod(name: &str, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "steps:v1", "args": ["sleep 600000"]}]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// Requests of the one container.
fn asking(name: &str, requests: Value) -> Value {
    let mut pod = pod(name, json!({}));
    pod["spec"]["containers"][0]["resources"] = json!({"requests": requests, "limits": requests});
    pod
}

fn placed(cluster: &Cluster, name: &str) -> Result<String> {
    let pod = until(cluster, &["pod", name], "has a node", |pod| pod["spec"]["nodeName"].is_string())?;
    Ok(pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
}

/// Waits until `kubectl describe` says why a pod waits.
fn waits(cluster: &Cluster, name: &str, words: &[&str]) -> Result<()> {
    eventually(&format!("{name} says why it waits: {words:?}"), PATIENCE, || {
        has(&cluster.kubectl(&["describe", "pod", name])?, words).map(|()| true)
    })?;
    ensure!(cluster.get(&["pod", name])?["status"]["phase"] == "Pending");
    Ok(())
}

/// Row: scheduler: resources, taints, affinity, spread, priorities and groups decide where a pod goes; a pod that waits says why
/// Profile: loopback
#[test]
fn mission_m03_pods_go_where_they_may_and_say_why_they_wait() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("steps", "steps:v1")?;
    let zone = |zone: &str| json!({"zone": zone});
    hollow_node(&cluster, "east", zone("east"), json!([]), json!({"nvidia.com/gpu": "1"}))?;
    let dedicated = json!([{"key": "dedicated", "value": "ml", "effect": "NoSchedule"}]);
    hollow_node(&cluster, "west", zone("west"), dedicated, json!({}))?;

    apply(&cluster, &[asking("big", json!({"cpu": "900"}))])?;
    let words =
        "0/3 nodes are available: 1 node(s) had untolerated taint {dedicated: ml}, 2 Insufficient cpu.";
    waits(&cluster, "big", &["FailedScheduling", words, "PodScheduled", "False"])?;

    apply(&cluster, &[asking("gpu", json!({"nvidia.com/gpu": "1"}))])?;
    ensure!(placed(&cluster, "gpu")? == "east");
    apply(&cluster, &[asking("gpu-2", json!({"nvidia.com/gpu": "1"}))])?;
    waits(&cluster, "gpu-2", &["2 Insufficient nvidia.com/gpu"])?;

    let west = json!({"nodeSelector": {"zone": "west"}});
    apply(&cluster, &[pod("intolerant", west.clone())])?;
    waits(
        &cluster,
        "intolerant",
        &[
            "1 node(s) had untolerated taint {dedicated: ml}",
            "2 node(s) didn't match Pod's node affinity/selector",
        ],
    )?;
    let mut tolerant = pod("tolerant", west);
    tolerant["spec"]["tolerations"] = json!([{"key": "dedicated", "operator": "Exists"}]);
    apply(&cluster, &[tolerant])?;
    ensure!(placed(&cluster, "tolerant")? == "west");

    others(&cluster)?;
    priorities(&cluster)?;
    gates(&cluster)?;
    gangs(&cluster)?;
    cluster.stop()
}

/// Near to and far from other pods, and evenly spread.
fn others(cluster: &Cluster) -> Result<()> {
    let term = |app: &str| json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}});
    let required = |app: &str| json!({"requiredDuringSchedulingIgnoredDuringExecution": [term(app)]});
    let near = pod("near", json!({"affinity": {"podAffinity": required("gpu")}}));
    apply(cluster, &[near])?;
    ensure!(placed(cluster, "near")? == "east");
    let mut far = pod("far", json!({"affinity": {"podAntiAffinity": required("gpu")}}));
    far["spec"]["nodeSelector"] = json!({"zone": "east"});
    apply(cluster, &[far])?;
    waits(cluster, "far", &["1 node(s) didn't match pod anti-affinity rules"])?;
    let spread = |n: usize| {
        let one = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"kind": "spread"}}});
        let tolerations = json!([{"operator": "Exists"}]);
        let mut pod = pod(
            &format!("spread-{n}"),
            json!({"topologySpreadConstraints": [one], "tolerations": tolerations}),
        );
        pod["metadata"]["labels"] = json!({"kind": "spread"});
        pod
    };
    apply(cluster, &[spread(1), spread(2), spread(3), spread(4)])?;
    let nodes = (1..=4).map(|n| placed(cluster, &format!("spread-{n}"))).collect::<Result<Vec<_>>>()?;
    ensure!(nodes.iter().filter(|node| *node == "east").count() == 2, "{nodes:?}");
    ensure!(nodes.iter().filter(|node| *node == "west").count() == 2, "{nodes:?}");
    Ok(())
}

/// A pod of higher priority takes the place of another.
fn priorities(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["create", "priorityclass", "urgent", "--value=1000", "--description=for the test"])?;
    let mut urgent = asking("urgent", json!({"nvidia.com/gpu": "1"}));
    urgent["spec"]["priorityClassName"] = "urgent".into();
    apply(cluster, &[urgent])?;
    let named =
        |pod: &Value| pod["status"]["nominatedNodeName"] == "east" || pod["spec"]["nodeName"] == "east";
    until(cluster, &["pod", "urgent"], "is nominated", named)?;
    eventually("the pod that had the GPU is told to stop", PATIENCE, || {
        let gpu = cluster.get(&["pod", "gpu", "--ignore-not-found"]);
        Ok(gpu.map_or(true, |pod| pod["metadata"]["deletionTimestamp"].is_string()))
    })?;
    // Nobody runs that node: its pods end by force.
    cluster.kubectl(&["delete", "pod", "gpu", "--force", "--grace-period=0", "--ignore-not-found"])?;
    ensure!(placed(cluster, "urgent")? == "east");
    let events = cluster.kubectl(&["get", "events", "--field-selector=reason=Preempted"])?;
    has(&events, &["pod/gpu", "Preempted by pod", "on node east"])
}

/// A gate holds a pod back.
fn gates(cluster: &Cluster) -> Result<()> {
    apply(cluster, &[pod("gated", json!({"schedulingGates": [{"name": "example.com/wait"}]}))])?;
    has(&cluster.kubectl(&["get", "pod", "gated"])?, &["SchedulingGated"])?;
    let node = cluster.get(&["pod", "gated"])?["spec"]["nodeName"].clone();
    ensure!(node.is_null(), "a gated pod has the node {node}");
    cluster.kubectl(&[
        "patch",
        "pod",
        "gated",
        "--type=merge",
        "-p",
        r#"{"spec":{"schedulingGates":null}}"#,
    ])?;
    placed(cluster, "gated").context("after its gate is gone").map(drop)
}

/// Pods of a gang have nodes at the same time or not at all.
fn gangs(cluster: &Cluster) -> Result<()> {
    let slots = |number: &str| json!({"example.com/slot": number});
    hollow_node(cluster, "rack-1", json!({}), json!([]), slots("2"))?;
    let mut members: Vec<Value> = (1..=3).map(|n| asking(&format!("worker-{n}"), slots("1"))).collect();
    for pod in &mut members {
        pod["spec"]["schedulingGroup"] = json!({"podGroupName": "training"});
    }
    apply(cluster, &members)?;
    waits(cluster, "worker-1", &["waiting for PodGroup \"default/training\" to appear"])?;
    let group = json!({
        "apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "training"},
        "spec": {"schedulingPolicy": {"gang": {"minCount": 3}}},
    });
    apply(cluster, std::slice::from_ref(&group))?;
    let words = "PodGroup \"default/training\" needs nodes for 3 pods at the same time, there are 2";
    for name in ["worker-1", "worker-2", "worker-3"] {
        waits(cluster, name, &[words, "Insufficient example.com/slot"])?;
    }
    has(&cluster.kubectl(&["get", "podgroups"])?, &["training", "Gang (3)", "False"])?;
    let mut fewer = group;
    fewer["spec"]["schedulingPolicy"]["gang"]["minCount"] = 2.into();
    let refused = apply(cluster, &[fewer]).err().context("a group's policy was changed")?;
    has(&format!("{refused:#}"), &["field is immutable"])?;
    hollow_node(cluster, "rack-2", json!({}), json!([]), slots("1"))?;
    let nodes = (1..=3).map(|n| placed(cluster, &format!("worker-{n}"))).collect::<Result<Vec<_>>>()?;
    ensure!(nodes.iter().filter(|node| *node == "rack-1").count() == 2, "{nodes:?}");
    until(cluster, &["podgroup", "training"], "says that its pods have nodes", |group| {
        let conditions = group["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["type"] == "PodGroupScheduled" && one["status"] == "True")
    })
    .map(drop)
}
