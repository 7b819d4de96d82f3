//! Volumes that have to be attached before a node can mount them; the attacher is this test's own. Profile: loopback.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, eventually};
use serde_json::{Value, json};

use super::super::super::pods::{SOON, apply, has, status, steps};
use super::super::cluster;
use super::{DRIVER, register};

const UNIQUE: &str = "kubernetes.io/csi/fake.csi.coracle.dev^vol-1";
const HOLDS: &str = "external-attacher/fake";

/// One look of an external attacher: what is asked for is attached, what is deleted is let go.
fn attacher(cluster: &Cluster) -> Result<Vec<Value>> {
    let all = cluster.get(&["volumeattachments"])?["items"].as_array().cloned().unwrap_or_default();
    for one in &all {
        let name = one["metadata"]["name"].as_str().context("its name")?;
        let patch = |what: &str, body: Value| {
            let body = body.to_string();
            let mut args = vec!["patch", "volumeattachment", name, "--type=merge", "-p", body.as_str()];
            args.extend(Some(what).filter(|what| !what.is_empty()));
            cluster.kubectl(&args).map(drop)
        };
        if one["metadata"]["deletionTimestamp"].is_string() {
            patch("", json!({"metadata": {"finalizers": null}}))?;
        } else if one["status"]["attached"] != true {
            patch("", json!({"metadata": {"finalizers": [HOLDS]}}))?;
            let attached = json!({"status": {"attached": true, "attachmentMetadata": {"lun": "7"}}});
            patch("--subresource=status", attached)?;
        }
    }
    Ok(all)
}

fn has_volume(cluster: &Cluster, node: &str, list: &str) -> Result<bool> {
    let status = cluster.get(&["node", node])?["status"].take();
    Ok(status[list].to_string().contains(UNIQUE))
}

/// A node that nobody runs, which says that it has the volume mounted.
fn hollow(cluster: &Cluster, ready: &str) -> Result<()> {
    let managed = json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
    let node =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "far", "annotations": managed}});
    apply(cluster, &[node])?;
    let time = "2026-01-01T00:00:00Z";
    let status = json!({"status": {"volumesInUse": [UNIQUE], "conditions": [
        {"type": "Ready", "status": ready, "reason": "Test", "message": "", "lastHeartbeatTime": time, "lastTransitionTime": time},
    ]}});
    let body = status.to_string();
    cluster.kubectl(&["patch", "node", "far", "--subresource=status", "--type=merge", "-p", &body]).map(drop)
}

/// Row: storage: a volume whose driver needs it is attached before it is mounted and detached after; one that another node has waits; a node that is out of service loses it by force
#[test]
fn volumes_are_attached_and_detached() -> Result<Ended> {
    let (mut node_cluster, node) = cluster(&[])?;
    let cluster = &node_cluster;
    let runtime = tokio::runtime::Runtime::new()?;
    let fake = register(cluster, &runtime)?;
    let pod = |name: &str, node: &str| {
        let mut pod = steps(node, name, "Always", &["read /v/file", "sleep 600000"]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        pod["spec"]["volumes"] = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
        pod
    };
    apply(
        cluster,
        &[
            json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": {"attachRequired": true}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "fake-1"}, "spec": {
                "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "hand",
                "csi": {"driver": DRIVER, "volumeHandle": "vol-1"}}}),
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "storageClassName": "hand", "volumeName": "fake-1",
                "resources": {"requests": {"storage": "1Mi"}}}}),
            pod("first", &node),
        ],
    )?;
    // Nobody has attached it yet: the pod waits, and says for what.
    eventually("a VolumeAttachment is made", SOON, || {
        let all = cluster.get(&["volumeattachments"])?;
        let spec = &all["items"][0]["spec"];
        Ok(spec["attacher"] == DRIVER
            && spec["nodeName"] == node
            && spec["source"]["persistentVolumeName"] == "fake-1")
    })?;
    eventually("an Event tells", SOON, || {
        has(
            &cluster.kubectl(&["describe", "pod", "first"])?,
            &["volume vol-1 is not attached to this node yet"],
        )?;
        Ok(true)
    })?;
    ensure!(fake.count("stage vol-1") == 0, "{:?}", fake.calls());
    attacher(cluster)?;
    status(cluster, "first", "runs", |status| status["phase"] == "Running")
        .with_context(|| cluster.kubectl(&["describe", "pod", "first"]).unwrap_or_default())?;
    ensure!(fake.count("stage vol-1") == 1 && fake.count("at 7") == 1, "{:?}", fake.calls());
    has(&cluster.kubectl(&["describe", "pod", "first"])?, &["SuccessfulAttachVolume"])?;
    eventually("the node says so", SOON, || {
        Ok(has_volume(cluster, &node, "volumesAttached")? && has_volume(cluster, &node, "volumesInUse")?)
    })?;

    // Another node may not have it meanwhile.
    hollow(cluster, "True")?;
    apply(cluster, &[pod("second", "far")])?;
    eventually("the second pod is told", SOON, || {
        let words = "Multi-Attach error for volume \"fake-1\" Volume is already used by pod(s) default/first";
        has(&cluster.kubectl(&["describe", "pod", "second"])?, &[words])?;
        Ok(true)
    })?;
    cluster.kubectl(&["delete", "pod", "first", "--timeout=30s"])?;
    eventually("it moves to the other node", SOON, || {
        let all = attacher(cluster)?;
        Ok(all.len() == 1 && all[0]["spec"]["nodeName"] == "far" && all[0]["status"]["attached"] == true)
    })?;
    ensure!(fake.count("unstage vol-1") == 1, "detached before it was given back: {:?}", fake.calls());
    eventually("the first node has it no more", SOON, || {
        Ok(!has_volume(cluster, &node, "volumesAttached")? && !has_volume(cluster, &node, "volumesInUse")?)
    })?;

    // A node that says that it has it mounted keeps it, until somebody says that the node is off.
    cluster.kubectl(&["delete", "pod", "second", "--force", "--grace-period=0"])?;
    apply(cluster, &[pod("third", &node)])?;
    eventually("the third pod is told", SOON, || {
        let words =
            "Multi-Attach error for volume \"fake-1\" Volume is already exclusively attached to one node";
        has(&cluster.kubectl(&["describe", "pod", "third"])?, &[words])?;
        Ok(true)
    })?;
    let all = attacher(cluster)?;
    ensure!(all.len() == 1 && all[0]["metadata"]["deletionTimestamp"].is_null(), "{all:#?}");
    cluster.kubectl(&["taint", "node", "far", "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"])?;
    eventually("it is taken by force", SOON, || {
        let all = attacher(cluster)?;
        Ok(all.len() == 1 && all[0]["spec"]["nodeName"] == node)
    })?;
    status(cluster, "third", "runs", |status| status["phase"] == "Running")?;
    cluster.kubectl(&["delete", "pod", "third", "--timeout=30s"])?;
    eventually("nothing is attached", SOON, || Ok(attacher(cluster)?.is_empty()))?;
    node_cluster.stop()
}
