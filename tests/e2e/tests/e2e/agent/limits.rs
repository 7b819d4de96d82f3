//! What a pod may use, and how that changes while it runs. Profile: loopback.

use anyhow::{Result, ensure};
use coracle_e2e::{Ended, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::super::pods::{SOON, apply, has, ready, status, steps};
use super::{cluster, condition};

/// The first container of a pod.
fn main(status: &Value) -> &Value {
    &status["containerStatuses"][0]
}

/// Row: pods: what is written to logs and emptyDir volumes is limited; a volume in memory is in memory, without root too
#[test]
fn ephemeral_storage_is_limited() -> Result<Ended> {
    let (mut node_cluster, node) = cluster(&[])?;
    let cluster = &node_cluster;
    let mut talks = steps(&node, "talks", "Always", &["tick 20000 0", "sleep 600000"]);
    talks["spec"]["containers"][0]["resources"] = json!({"limits": {"ephemeral-storage": "64Ki"}});
    let mut memory =
        steps(&node, "memory", "Always", &["write /m/file here", "read /m/file", "sleep 600000"]);
    memory["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "m", "mountPath": "/m"}]);
    memory["spec"]["volumes"] = json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
    apply(cluster, &[talks, memory])?;
    eventually("the file is written", SOON, || {
        Ok(cluster.kubectl(&["logs", "memory"])?.contains("/m/file: here"))
    })?;
    let uid = cluster.kubectl(&["get", "pod", "memory", "-o", "jsonpath={.metadata.uid}"])?;
    let find = || -> Result<String> {
        let mut find = std::process::Command::new("find");
        coracle_e2e::succeed(find.args(["/dev/shm", "-path", &format!("*/{uid}/m/file")]))
    };
    ensure!(find()?.lines().count() == 1, "the file is not in memory: {}", find()?);
    let evicted = status(cluster, "talks", "is evicted", |status| status["phase"] == "Failed")?;
    ensure!(evicted["reason"] == "Evicted", "{evicted:#}");
    let words = "Container main exceeded its local ephemeral storage limit \\\"64Ki\\\". ";
    has(&evicted["message"].to_string(), &[words])?;
    cluster.kubectl(&["delete", "pod", "memory", "--timeout=30s"])?;
    eventually("nothing is left in memory", SOON, || Ok(find()?.is_empty()))?;
    node_cluster.stop()
}

/// Row: pods: containers are resized in place, or restarted where their resizePolicy asks for that; what does not fit is told; a pod that never fits is refused
#[test]
fn pods_are_resized_in_place() -> Result<Ended> {
    let (mut node_cluster, node) = cluster(&[])?;
    let cluster = &node_cluster;
    let mut pod = steps(&node, "sized", "Always", &["sleep 600000"]);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
    pod["spec"]["containers"][0]["resources"] =
        json!({"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}});
    pod["spec"]["containers"][0]["resizePolicy"] = json!([
        {"resourceName": "cpu", "restartPolicy": "RestartContainer"},
        {"resourceName": "memory", "restartPolicy": "RestartContainer"},
    ]);
    let mut grows = steps(&node, "grows", "Always", &["sleep 600000"]);
    grows["spec"]["containers"][0]["resources"] = pod["spec"]["containers"][0]["resources"].clone();
    let mut huge = steps(&node, "huge", "Always", &["sleep 600000"]);
    huge["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    apply(cluster, &[pod, grows, huge])?;
    let refused = status(cluster, "huge", "is refused", |status| status["phase"] == "Failed")?;
    ensure!(refused["reason"] == "OutOfcpu", "{refused:#}");
    let words = "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: ";
    has(&refused["message"].to_string(), &[words])?;

    let first = status(cluster, "sized", "is ready", ready)?;
    let resize_of = |pod: &str, resources: Value| -> Result<()> {
        let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}}).to_string();
        cluster.kubectl(&["patch", "pod", pod, "--subresource=resize", "-p", &patch]).map(drop)
    };
    let resize = |resources: Value| resize_of("sized", resources);
    resize(json!({"limits": {"memory": "96Mi"}}))?;
    let restarted = status(cluster, "sized", "has more memory after a restart", |status| {
        main(status)["restartCount"] == 1 && main(status)["resources"]["limits"]["memory"] == "96Mi"
    })?;
    ensure!(main(&restarted)["containerID"] != main(&first)["containerID"], "{restarted:#}");
    resize(json!({"requests": {"cpu": "1000"}, "limits": {"cpu": "1000"}}))?;
    let of_kind = |status: &Value, kind: &str| {
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == kind)
    };
    let pending = |status: &Value| of_kind(status, "PodResizePending");
    let waits = status(cluster, "sized", "cannot grow so far", |status| pending(status).is_some())?;
    let told = pending(&waits).unwrap_or_default();
    ensure!(told["reason"] == "Infeasible" && told["status"] == "True", "{told:#}");
    has(&told["message"].to_string(), &["Node didn't have enough capacity: cpu, requested: 1000000"])?;
    ensure!(main(&waits)["resources"]["limits"]["cpu"] == "100m", "{waits:#}");
    ensure!(main(&waits)["restartCount"] == 1, "{waits:#}");
    resize(json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "100m"}}))?;
    status(cluster, "sized", "is content", |status| pending(status).is_none())?;

    // In place, which is what happens where the policy says nothing.
    let before = status(cluster, "grows", "is ready", ready)?;
    resize_of("grows", json!({"requests": {"cpu": "20m"}, "limits": {"cpu": "200m", "memory": "96Mi"}}))?;
    let grown = status(cluster, "grows", "has more", |status| {
        let now = &main(status)["resources"];
        now["limits"] == json!({"cpu": "200m", "memory": "96Mi"}) && now["requests"]["cpu"] == "20m"
    })?;
    ensure!(main(&grown)["containerID"] == main(&before)["containerID"], "{grown:#}");
    ensure!(main(&grown)["restartCount"] == 0, "{grown:#}");
    // Less than it holds it cannot get: that is told, and tried again.
    let running = |status: &Value| of_kind(status, "PodResizeInProgress");
    resize_of("grows", json!({"requests": {"memory": "64Ki"}, "limits": {"memory": "64Ki"}}))?;
    let fails =
        status(cluster, "grows", "cannot have less than it holds", |status| running(status).is_some())?;
    let told = running(&fails).unwrap_or_default();
    ensure!(told["reason"] == "Error" && pending(&fails).is_none(), "{fails:#}");
    let words = "attempting to set container \"main\" memory limit (65536) below current usage (";
    has(told["message"].as_str().unwrap_or_default(), &[words])?;
    ensure!(main(&fails)["resources"]["limits"]["memory"] == "96Mi", "{fails:#}");
    resize_of("grows", json!({"requests": {"memory": "16Mi"}, "limits": {"memory": "32Mi"}}))?;
    let shrunk = status(cluster, "grows", "has less", |status| {
        main(status)["resources"]["limits"]["memory"] == "32Mi" && running(status).is_none()
    })?;
    ensure!(main(&shrunk)["containerID"] == main(&before)["containerID"], "{shrunk:#}");
    node_cluster.stop()
}

/// Row: node: when the machine shuts down pods are ended in time, critical ones last, and new ones are refused
#[test]
fn pods_end_before_the_machine() -> Result<Ended> {
    let flags = ["--shutdown-grace-period=8s", "--shutdown-grace-period-critical-pods=4s"];
    let (mut node_cluster, node) = cluster(&flags)?;
    let cluster = &node_cluster;
    let pod = |name: &str| {
        let mut pod = steps(&node, name, "Always", &["sleep 600000"]);
        pod["spec"]["terminationGracePeriodSeconds"] = json!(2);
        pod
    };
    let mut critical = pod("critical");
    critical["metadata"]["namespace"] = json!("kube-system");
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    let mut plain = pod("plain");
    plain["spec"]["terminationGracePeriodSeconds"] = json!(4);
    plain["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 2}}});
    apply(cluster, &[plain, critical])?;
    let of = |name: &str, namespace: &str| -> Result<Value> {
        Ok(cluster.get(&["-n", namespace, "pod", name])?["status"].take())
    };
    for (name, namespace) in [("plain", "default"), ("critical", "kube-system")] {
        eventually("it is ready", SOON, || Ok(ready(&of(name, namespace)?)))?;
    }
    kill(Pid::from_raw(cluster.pid("node")?), Signal::SIGPWR)?;
    for (name, namespace) in [("plain", "default"), ("critical", "kube-system")] {
        eventually("it is ended", SOON, || Ok(of(name, namespace)?["phase"] == "Failed"))?;
        let ended = of(name, namespace)?;
        ensure!(ended["reason"] == "Terminated", "{ended:#}");
        has(&ended["message"].to_string(), &["Pod was terminated in response to imminent node shutdown."])?;
    }
    let end = |status: Value| main(&status)["state"]["terminated"]["finishedAt"].as_str().map(str::to_owned);
    let (plain, critical) = (end(of("plain", "default")?), end(of("critical", "kube-system")?));
    ensure!(plain.is_some() && plain <= critical, "{plain:?} {critical:?}");
    eventually("the node is not ready", SOON, || {
        Ok(condition(&cluster.get(&["node", &node])?, "Ready") == "False")
    })?;
    apply(cluster, &[pod("late")])?;
    let late = status(cluster, "late", "is refused", |status| status["phase"] == "Failed")?;
    ensure!(late["reason"] == "NodeShutdown", "{late:#}");
    // Another agent takes pods again.
    cluster.kill("node")?;
    eventually("the node is ready", SOON, || {
        Ok(condition(&cluster.get(&["node", &node])?, "Ready") == "True")
    })?;
    apply(cluster, &[pod("again")])?;
    status(cluster, "again", "is ready", ready)?;
    node_cluster.stop()
}
