//! Deletion: what goes with what, in which order, and what holds it. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually};
use serde_json::{Value, json};

const HOLD: &str = "example.com/hold";

fn apply(cluster: &Cluster, object: &Value) -> Result<Value> {
    let file = cluster.file("object.json", &object.to_string())?;
    Ok(serde_json::from_str(&cluster.kubectl(&["create", "-o", "json", "-f", &file])?)?)
}

/// An owner and one that depends on it, held by a finalizer if `held`.
fn family(cluster: &Cluster, name: &str, held: bool) -> Result<()> {
    let owner = apply(
        cluster,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("{name}-owner")}}),
    )?;
    let reference = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true,
    });
    let finalizers = if held { json!([HOLD]) } else { json!([]) };
    let child = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": format!("{name}-child"), "ownerReferences": [reference], "finalizers": finalizers,
    }});
    apply(cluster, &child).map(drop)
}

fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    eventually(&format!("{name} is gone"), SOON, || {
        Ok(cluster.kubectl_fails(&["get", "configmap", name])?.contains("NotFound"))
    })
}

fn delete(cluster: &Cluster, name: &str, cascade: &str) -> Result<()> {
    cluster.kubectl(&["delete", "configmap", name, &format!("--cascade={cascade}"), "--wait=false"]).map(drop)
}

fn release(cluster: &Cluster, name: &str, namespace: &str) -> Result<()> {
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    cluster.kubectl(&["patch", "configmap", name, "-n", namespace, "--type=merge", "-p", patch]).map(drop)
}

/// Row: deletion: foreground, background and orphan; finalizers hold; collections by selector
#[test]
fn cascades_go_in_their_order() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    family(&cluster, "f", true)?;
    delete(&cluster, "f-owner", "foreground")?;
    eventually("the child is marked", SOON, || {
        Ok(cluster.get(&["configmap", "f-child"])?["metadata"]["deletionTimestamp"].is_string())
    })?;
    let owner = cluster.get(&["configmap", "f-owner"])?;
    ensure!(owner["metadata"]["finalizers"] == json!(["foregroundDeletion"]), "{owner}");
    ensure!(owner["metadata"]["deletionTimestamp"].is_string(), "{owner}");
    release(&cluster, "f-child", "default")?;
    gone(&cluster, "f-child")?;
    gone(&cluster, "f-owner")?;

    family(&cluster, "b", true)?;
    delete(&cluster, "b-owner", "background")?;
    gone(&cluster, "b-owner")?;
    eventually("the child is marked", SOON, || {
        Ok(cluster.get(&["configmap", "b-child"])?["metadata"]["deletionTimestamp"].is_string())
    })?;
    release(&cluster, "b-child", "default")?;
    gone(&cluster, "b-child")?;

    family(&cluster, "o", false)?;
    delete(&cluster, "o-owner", "orphan")?;
    gone(&cluster, "o-owner")?;
    let child = cluster.get(&["configmap", "o-child"])?;
    ensure!(child["metadata"]["ownerReferences"].is_null(), "{child}");
    ensure!(child["metadata"]["deletionTimestamp"].is_null(), "{child}");

    for (name, app) in [("s1", "goes"), ("s2", "goes"), ("s3", "stays")] {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"app": app}}});
        apply(&cluster, &object)?;
    }
    cluster.kubectl(&["delete", "configmap", "-l", "app=goes"])?;
    gone(&cluster, "s1")?;
    gone(&cluster, "s2")?;
    cluster.get(&["configmap", "s3"])?;
    ranges_stay_while_they_are_in_use(&cluster)?;
    cluster.stop()
}

/// A range of Service addresses that is deleted says what it waits for.
fn ranges_stay_while_they_are_in_use(cluster: &Cluster) -> Result<()> {
    const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
    let range = |name: &str, cidr: &str| {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": name}, "spec": {"cidrs": [cidr]}})
    };
    let ready = |name: &str| -> Result<Value> {
        Ok(cluster.get(&["servicecidr", name])?["status"]["conditions"][0].clone())
    };
    for (name, cidr) in [("used", "127.111.254.0/28"), ("unused", "127.111.255.0/28")] {
        apply(cluster, &range(name, cidr))?;
        eventually("the range is held", SOON, || {
            Ok(cluster.get(&["servicecidr", name])?["metadata"]["finalizers"] == json!([FINALIZER])
                && ready(name)?["status"] == "True")
        })?;
    }
    ensure!(ready("used")?["message"] == "Kubernetes Service CIDR is ready");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "held"},
        "spec": {"clusterIP": "127.111.254.5", "ports": [{"port": 80}]}});
    apply(cluster, &service)?;
    cluster.kubectl(&["delete", "servicecidr", "used", "unused", "--wait=false"])?;
    eventually("it is said that the range is in use", SOON, || Ok(ready("used")?["status"] == "False"))?;
    let said = ready("used")?;
    ensure!(said["type"] == "Ready" && said["reason"] == "Terminating", "{said}");
    let words = "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
    ensure!(said["message"] == words, "{said}");
    eventually("the range that nobody needs is gone", SOON, || {
        Ok(cluster.kubectl_fails(&["get", "servicecidr", "unused"])?.contains("NotFound"))
    })?;
    cluster.get(&["servicecidr", "used"])?;
    cluster.kubectl(&["delete", "service", "held"])?;
    cluster.kubectl(&["wait", "--for=delete", "servicecidr/used", "--timeout=30s"])?;
    Ok(())
}

/// Row: deletion: a namespace says what is left in it, and goes when nothing is
#[test]
fn namespaces_say_what_holds_them() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "namespace", "full"])?;
    let held = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
        "name": "held", "namespace": "full", "finalizers": [HOLD],
    }});
    apply(&cluster, &held)?;
    cluster.kubectl(&["delete", "namespace", "full", "--wait=false"])?;
    let condition = |kind: &str| -> Result<Value> {
        let namespace = cluster.get(&["namespace", "full"])?;
        let all = namespace["status"]["conditions"].as_array().cloned().unwrap_or_default();
        Ok(all.into_iter().find(|c| c["type"] == kind).unwrap_or_default())
    };
    eventually("the namespace says what is left", SOON, || {
        Ok(condition("NamespaceContentRemaining")?["status"] == "True"
            && condition("NamespaceFinalizersRemaining")?["status"] == "True")
    })?;
    let content = condition("NamespaceContentRemaining")?;
    ensure!(
        content["message"] == "Some resources are remaining: configmaps. has 1 resource instances",
        "{content}"
    );
    let finalizers = condition("NamespaceFinalizersRemaining")?;
    let words =
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
    ensure!(finalizers["message"] == words, "{finalizers}");
    ensure!(condition("NamespaceDeletionDiscoveryFailure")?["status"] == "False");
    ensure!(condition("NamespaceDeletionGroupVersionParsingFailure")?["status"] == "False");
    ensure!(condition("NamespaceDeletionContentFailure")?["status"] == "False");
    ensure!(cluster.get(&["namespace", "full"])?["status"]["phase"] == "Terminating");
    let refused = cluster.kubectl_fails(&["create", "configmap", "late", "-n", "full"])?;
    ensure!(refused.contains("because it is being terminated"), "{refused}");
    release(&cluster, "held", "full")?;
    eventually("the namespace is gone", SOON, || {
        Ok(cluster.kubectl_fails(&["get", "namespace", "full"])?.contains("NotFound"))
    })?;
    cluster.stop()
}
