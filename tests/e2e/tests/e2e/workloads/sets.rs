//! StatefulSets and DaemonSets.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, curl, eventually};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, hollow_node, name, pods, until};

fn stateful() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {
            "replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {
                "metadata": {"labels": {"app": "db"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                    "name": "c", "image": "switch:v1", "env": [{"name": "DIR", "value": "/data"}],
                    "ports": [{"containerPort": 8080}], "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                }]},
            },
            "volumeClaimTemplates": [{
                "metadata": {"name": "data"},
                "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Mi"}}},
            }],
        },
    })
}

fn page(cluster: &Cluster, pod: &str, path: &str) -> Result<String> {
    let ip = cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?;
    curl(&format!("http://{ip}:8080{path}"))
}

/// Row: StatefulSet, DaemonSet: identity, storage and order are kept; one pod a node; both roll out and back
/// Profile: loopback
#[test]
fn mission_m12_identity_storage_and_order_are_kept() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("switch", "switch:v1")?;
    cluster.push("switch", "switch:v2")?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
        "spec": {"clusterIP": "None", "selector": {"app": "db"}, "ports": [{"port": 8080}]},
    });
    apply(&cluster, &[service, stateful()])?;
    until(&cluster, &["sts", "db"], "is ready", |s| s["status"]["readyReplicas"] == 2).with_context(
        || {
            let told = cluster.kubectl(&["describe", "pods,pvc,pv"]).unwrap_or_default();
            format!("{told}\n{}", cluster.kubectl(&["get", "events"]).unwrap_or_default())
        },
    )?;
    order(&cluster)?;
    storage(&cluster)?;
    rollout(&cluster)?;
    daemons(&cluster)?;
    cluster.stop()
}

/// The second comes when the first is ready, and both are known by name.
fn order(cluster: &Cluster) -> Result<()> {
    let (first, second) = (cluster.get(&["pod", "db-0"])?, cluster.get(&["pod", "db-1"])?);
    let ready = first["status"]["conditions"].as_array().context("conditions")?;
    let ready = ready.iter().find(|c| c["type"] == "Ready").context("Ready")?["lastTransitionTime"].as_str();
    let made = second["metadata"]["creationTimestamp"].as_str();
    ensure!(ready <= made, "db-1 was made at {made:?}, db-0 was ready at {ready:?}");
    ensure!(page(cluster, "db-1", "/")?.trim() == "db-1", "its host name");
    let slices = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=db"])?;
    let endpoints = slices["items"][0]["endpoints"].as_array().context("endpoints")?;
    let mut names: Vec<&str> = endpoints.iter().filter_map(|e| e["hostname"].as_str()).collect();
    names.sort_unstable();
    ensure!(names == ["db-0", "db-1"], "{names:?}");
    Ok(())
}

/// Data stays with the name: over a new pod, and over scaling down and up.
fn storage(cluster: &Cluster) -> Result<()> {
    page(cluster, "db-1", "/on/mark")?;
    ensure!(page(cluster, "db-0", "/is/mark").is_err(), "each has storage of its own");
    let before = cluster.get(&["pod", "db-1"])?["metadata"]["uid"].clone();
    cluster.kubectl(&["delete", "pod", "db-1"])?;
    eventually("a new db-1 has the data of the old", PATIENCE, || {
        let now = cluster.get(&["pod", "db-1"])?["metadata"]["uid"].clone();
        Ok(now != before && page(cluster, "db-1", "/is/mark").is_ok())
    })?;
    cluster.kubectl(&["scale", "sts/db", "--replicas=1"])?;
    eventually("the last goes first", PATIENCE, || {
        let names: Vec<String> = pods(cluster, "app=db")?.iter().map(name).collect();
        Ok(names == ["db-0"])
    })?;
    let claim = until(cluster, &["pvc", "data-db-1"], "stays", |c| c["status"]["phase"] == "Bound")?;
    let volume = claim["spec"]["volumeName"].as_str().context("volumeName")?.to_owned();
    cluster.kubectl(&["scale", "sts/db", "--replicas=2"])?;
    eventually("db-1 is back with its data", PATIENCE, || Ok(page(cluster, "db-1", "/is/mark").is_ok()))?;
    // A volume goes with its claim, which waits for its pod.
    cluster.kubectl(&["delete", "pvc", "data-db-1", "--wait=false"])?;
    ensure!(cluster.get(&["pvc", "data-db-1"])?["metadata"]["deletionTimestamp"].is_string(), "in use");
    cluster.kubectl(&["scale", "sts/db", "--replicas=1"])?;
    eventually("claim, volume and data are gone", PATIENCE, || {
        let left = cluster.kubectl(&["get", "pv", &volume, "--ignore-not-found"])?;
        let pattern = format!("*{volume}*");
        let found = coracle_e2e::succeed(
            std::process::Command::new("find").arg(cluster.data_dir()).args(["-path", &pattern]),
        )?;
        Ok(left.is_empty() && found.is_empty())
    })
}

fn rollout(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["scale", "sts/db", "--replicas=2"])?;
    let rolled = || cluster.kubectl(&["rollout", "status", "sts/db", "--timeout=60s"]);
    rolled()?;
    let image =
        |pod: &str| cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.spec.containers[0].image}"]);
    let partition = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":1}}}}"#;
    cluster.kubectl(&["patch", "sts", "db", "--type=merge", "-p", partition])?;
    cluster.kubectl(&["set", "image", "sts/db", "c=switch:v2"])?;
    eventually("the last is updated", PATIENCE, || Ok(image("db-1")? == "switch:v2"))?;
    until(cluster, &["pod", "db-1"], "is ready", |p: &Value| super::super::pods::ready(&p["status"]))?;
    ensure!(image("db-0")? == "switch:v1", "below the partition");
    let all = r#"{"spec":{"updateStrategy":{"rollingUpdate":{"partition":0}}}}"#;
    cluster.kubectl(&["patch", "sts", "db", "--type=merge", "-p", all])?;
    rolled()?;
    ensure!(image("db-0")? == "switch:v2");
    has(&cluster.kubectl(&["rollout", "history", "sts/db"])?, &["1", "2"])?;
    cluster.kubectl(&["rollout", "undo", "sts/db"])?;
    rolled()?;
    ensure!(image("db-0")? == "switch:v1" && image("db-1")? == "switch:v1");
    cluster.kubectl(&["delete", "sts", "db"])?;
    eventually("its pods go with it", PATIENCE, || Ok(pods(cluster, "app=db")?.is_empty()))
}

fn daemons(cluster: &Cluster) -> Result<()> {
    let daemon = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "switch:v1"}]},
            },
        },
    });
    apply(cluster, &[daemon])?;
    has(
        &cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"])?,
        &["successfully rolled out"],
    )?;
    cluster.kubectl(&["set", "image", "ds/agent", "c=switch:v2"])?;
    cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"])?;
    cluster.kubectl(&["rollout", "undo", "ds/agent"])?;
    cluster.kubectl(&["rollout", "status", "ds/agent", "--timeout=60s"])?;
    let image = |pod: &Value| pod["spec"]["containers"][0]["image"].clone();
    eventually("the old image is back", PATIENCE, || {
        let all = pods(cluster, "app=agent")?;
        Ok(all.len() == 1 && all.iter().all(|pod| image(pod) == "switch:v1"))
    })?;
    // A node that comes gets a pod; one with a taint does not.
    hollow_node(cluster, "second", json!({}), json!([]), json!({}))?;
    let taint = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
    hollow_node(cluster, "third", json!({}), taint, json!({}))?;
    eventually("one pod on each node that fits", PATIENCE, || {
        let all = pods(cluster, "app=agent")?;
        let mut nodes: Vec<&str> = all.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
        nodes.sort_unstable();
        Ok(nodes == ["node-1", "second"])
    })?;
    until(cluster, &["ds", "agent"], "counts two nodes", |d| d["status"]["desiredNumberScheduled"] == 2)?;
    cluster.kubectl(&["taint", "node", "second", "gone=yes:NoExecute"])?;
    eventually("the pod leaves a node that it may not be on", PATIENCE, || {
        let all = pods(cluster, "app=agent")?;
        let there = |pod: &&Value| pod["spec"]["nodeName"] == "second";
        Ok(all.iter().filter(there).all(|pod| pod["metadata"]["deletionTimestamp"].is_string()))
    })
}
