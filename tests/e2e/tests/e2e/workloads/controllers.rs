//! The controller manager's part: what it does about silent nodes, and that every controller of the mission is at work.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, hollow_node, name, pods, until};

/// Row: controllers: a silent node is unreachable after its grace, its pods are evicted and made anew elsewhere; replication,
/// endpoints, namespaces, accounts and volume protection work
/// Profile: loopback
#[test]
fn mission_m04_pods_of_a_silent_node_come_up_elsewhere() -> Result<Ended> {
    let flags = ["--node-monitor-grace-period=6", "--default-toleration-seconds=2"];
    let mut cluster = Cluster::start_with(Profile::Loopback, &flags)?;
    cluster.push("web", "web:v1")?;
    // A node that registers, takes a pod, and is never heard of again.
    cluster.kubectl(&["cordon", "node-1"])?;
    hollow_node(&cluster, "silent", json!({}), json!([]), json!({}))?;
    let controller = json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"app": "web"}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": "web:v1", "ports": [{"containerPort": 8080}]}]},
        }},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    apply(&cluster, &[controller, service])?;
    let mut lost = String::new();
    eventually("the pod is on the node", PATIENCE, || {
        let all = pods(&cluster, "app=web")?;
        lost = all.first().map(name).unwrap_or_default();
        Ok(all.iter().any(|pod| pod["spec"]["nodeName"] == "silent"))
    })?;
    cluster.kubectl(&["uncordon", "node-1"])?;

    let node = until(&cluster, &["node", "silent"], "is unreachable", |node| {
        let taints = node["spec"]["taints"].to_string();
        taints.contains("node.kubernetes.io/unreachable") && taints.contains("NoExecute")
    })?;
    let ready = node["status"]["conditions"].as_array().context("conditions")?;
    let ready = ready.iter().find(|c| c["type"] == "Ready").context("Ready")?;
    ensure!(ready["status"] == "Unknown" && ready["reason"] == "NodeStatusUnknown", "{ready:#}");
    has(&cluster.kubectl(&["get", "nodes"])?, &["silent", "NotReady"])?;
    eventually("another pod serves elsewhere", PATIENCE, || {
        let all = pods(&cluster, "app=web")?;
        let serves =
            |pod: &Value| pod["spec"]["nodeName"] == "node-1" && super::super::pods::ready(&pod["status"]);
        let leaves = |pod: &Value| name(pod) != lost || pod["metadata"]["deletionTimestamp"].is_string();
        Ok(all.iter().any(serves) && all.iter().all(leaves))
    })
    .with_context(|| cluster.kubectl(&["describe", "pods"]).unwrap_or_default())?;
    let events = cluster.kubectl(&["get", "events"])?;
    has(&events, &["TaintManagerEviction", "NodeNotReady", "Created pod: web-"])?;
    until(&cluster, &["endpoints", "web"], "has the new pod's address", |e| {
        e["subsets"][0]["addresses"][0]["nodeName"] == "node-1"
    })?;
    // The node is removed: what is left of its pods goes too.
    cluster.kubectl(&["delete", "node", "silent"])?;
    eventually("the lost pod is gone", PATIENCE, || {
        Ok(cluster.kubectl(&["get", "pod", &lost, "--ignore-not-found"])?.is_empty())
    })?;

    cluster.kubectl(&["create", "namespace", "team"])?;
    until(&cluster, &["serviceaccount", "default", "-n", "team"], "is made", |_| true)?;
    until(&cluster, &["configmap", "kube-root-ca.crt", "-n", "team"], "is made", |_| true)?;
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "kept"},
        "spec": {"capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}, "storageClassName": "by-hand"},
    });
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "keeps"},
        "spec": {"storageClassName": "by-hand", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    });
    apply(&cluster, &[volume, claim])?;
    until(&cluster, &["pvc", "keeps"], "is bound", |c| c["status"]["phase"] == "Bound")?;
    cluster.kubectl(&["delete", "pv", "kept", "--wait=false"])?;
    let protected = cluster.get(&["pv", "kept"])?;
    ensure!(protected["metadata"]["finalizers"].to_string().contains("pv-protection"), "{protected:#}");
    cluster.kubectl(&["delete", "pvc", "keeps"])?;
    eventually("the volume goes when its claim is gone", PATIENCE, || {
        Ok(cluster.kubectl(&["get", "pv", "kept", "--ignore-not-found"])?.is_empty())
    })?;
    cluster.kubectl(&["delete", "namespace", "team", "--timeout=30s"])?;
    cluster.stop()
}
