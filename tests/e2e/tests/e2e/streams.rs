//! Streams of pods through API server, agent and runtime: logs that follow, proxies, usage, exec, attach, port-forward, cp.
//! Profile: loopback.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, eventually, kubectl};
use serde_json::json;

use super::pods::{SOON, apply, cluster, has, ready, status, steps};

/// A kubectl that goes on; ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(cluster: &Cluster, args: &[&str]) -> Result<Running> {
    let mut command = cluster.command(kubectl()?);
    command.args(args).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Ok(Running(command.spawn()?))
}

/// Row: streams: logs that follow a pod to its end, proxies to pods, Services and nodes, usage of nodes and pods
/// Profile: loopback
#[test]
fn logs_follow_and_proxies_reach_pods_services_and_nodes() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps", "switch"])?;
    let web = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "labels": {"app": "web"}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "switch:v1", "ports": [{"name": "web", "containerPort": 8080}],
            "volumeMounts": [{"name": "state", "mountPath": "/state"}],
        }], "volumes": [{"name": "state", "emptyDir": {}}]},
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}]},
    });
    apply(&cluster, &[web, service, steps(&node, "ticks", "Never", &["tick 40 100", "print the end"])])?;
    status(&cluster, "ticks", "runs", |s| s["phase"] == "Running")?;
    let mut following = start(&cluster, &["logs", "-f", "ticks"])?;
    let out = following.0.stdout.take().context("standard output")?;
    let lines: Vec<String> = BufReader::new(out).lines().collect::<std::io::Result<_>>()?;
    ensure!(lines.len() == 41 && lines.last().is_some_and(|l| l == "the end"), "{lines:?}");

    status(&cluster, "web", "is ready", ready)?;
    let raw = |path: &str| cluster.kubectl(&["get", "--raw", path]);
    let namespace = "/api/v1/namespaces/default";
    ensure!(raw(&format!("{namespace}/pods/web:8080/proxy/"))? == "web");
    ensure!(raw(&format!("{namespace}/pods/web/proxy/"))? == "web", "the first declared port");
    eventually("the Service has its endpoint", SOON, || {
        Ok(raw(&format!("{namespace}/services/web:http/proxy/"))? == "web")
    })?;
    ensure!(raw(&format!("/api/v1/nodes/{node}/proxy/healthz"))? == "ok");
    has(&raw(&format!("/api/v1/nodes/{node}/proxy/configz"))?, &["KubeletConfiguration", "clusterDomain"])?;
    has(&raw(&format!("/api/v1/nodes/{node}/proxy/metrics"))?, &["kubelet_running_pods"])?;
    let summary = raw(&format!("/api/v1/nodes/{node}/proxy/stats/summary"))?;
    has(&summary, &["usageCoreNanoSeconds", "workingSetBytes", "\"web\""])?;
    let refused = cluster.kubectl_fails(&["get", "--raw", &format!("{namespace}/pods/web:nope/proxy/")])?;
    has(&refused, &["no port \"nope\" in pod \"web\""])?;

    let minute = Duration::from_secs(90);
    eventually("usage is known", minute, || {
        Ok(cluster.kubectl(&["top", "pods"])?.contains("web")
            && cluster.kubectl(&["top", "nodes"])?.contains(&node))
    })?;
    // What has ended uses nothing.
    let told = cluster.kubectl(&["top", "pods"])?;
    ensure!(!told.contains("ticks"), "{told}");
    cluster.stop()
}

/// Row: streams: exec, cp, attach, port-forward and exec probes on a wasm pod without any privilege
/// Profile: loopback
#[test]
fn exec_copy_attach_and_forward_reach_a_wasm_pod() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps", "switch"])?;
    let web = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "switch:v1", "ports": [{"name": "web", "containerPort": 8080}],
            "readinessProbe": {"exec": {"command": ["test", "-f", "/state/ready"]}, "periodSeconds": 1},
            "volumeMounts": [{"name": "state", "mountPath": "/state"}],
        }], "volumes": [{"name": "state", "emptyDir": {}}]},
    });
    apply(&cluster, &[web, steps(&node, "ticks", "Never", &["tick 2000 50"])])?;
    for pod in ["web", "ticks"] {
        status(&cluster, pod, "runs", |s| s["phase"] == "Running")?;
    }
    ensure!(!ready(&cluster.get(&["pod", "web"])?["status"]), "ready before its probe");
    let note = cluster.file("note", "one\ntwo\n")?;
    cluster.kubectl(&["cp", &note, "web:/state/ready"])?;
    status(&cluster, "web", "is ready", ready)?;
    ensure!(cluster.kubectl(&["exec", "web", "--", "cat", "/state/ready"])? == "one\ntwo\n");
    let back = cluster.data_dir().with_file_name("back").display().to_string();
    cluster.kubectl(&["cp", "web:/state/ready", &back])?;
    ensure!(std::fs::read_to_string(&back)? == "one\ntwo\n");
    let refused = cluster.kubectl_fails(&["exec", "web", "--", "false"])?;
    has(&refused, &["command terminated with exit code 1"])?;
    // Input that a program does not read does not hide how it ended.
    let unread = cluster.file("unread", &"x".repeat(3_000_000))?;
    for _ in 0..10 {
        let mut exec = cluster.command(coracle_e2e::kubectl()?);
        exec.args(["exec", "-i", "web", "--", "true"]);
        let ended = exec.stdin(std::fs::File::open(&unread)?).output()?;
        ensure!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    // A debug container sees the volumes of the one that it looks into; what it cannot have is told.
    let debug = |name: &str, more: &[&str]| {
        let args = ["debug", "web", "--image=steps:v1", "--target=web", "-c", name];
        cluster.kubectl(&[&args[..], more, &["--", "steps", "read /state/ready"]].concat())
    };
    debug("looks", &[])?;
    eventually("the debug container has read the volume", SOON, || {
        Ok(cluster
            .kubectl(&["logs", "web", "-c", "looks"])
            .is_ok_and(|said| said == "/state/ready: one\ntwo\n"))
    })?;
    debug("types", &["-it", "--attach=false"])?;
    status(&cluster, "web", "has no terminal to give", |status| {
        let all = status["ephemeralContainerStatuses"].as_array().cloned().unwrap_or_default();
        let waits = all.iter().find(|c| c["name"] == "types").map(|c| &c["state"]["waiting"]);
        let words = waits.and_then(|w| w["message"].as_str()).unwrap_or_default();
        words.contains("a wasm container has no terminal") && words.contains("-i alone serves")
    })?;
    ensure!(cluster.get(&["pod", "web"])?["status"]["containerStatuses"][0]["restartCount"] == 0);
    let absent = cluster.kubectl_fails(&["exec", "web", "-c", "none", "--", "true"])?;
    has(&absent, &["container none is not valid for pod web"])?;

    let mut attached = start(&cluster, &["attach", "ticks"])?;
    let out = attached.0.stdout.take().context("standard output")?;
    let line = BufReader::new(out).lines().next().context("attach showed nothing")??;
    ensure!(line.starts_with("tick "), "{line}");

    let mut forward = start(&cluster, &["port-forward", "pod/web", ":8080"])?;
    let out = forward.0.stdout.take().context("standard output")?;
    // Read on: kubectl ends when nobody does.
    let mut said = BufReader::new(out).lines();
    let line = said.next().context("port-forward said nothing")??;
    let address =
        line.strip_prefix("Forwarding from ").and_then(|l| l.split(' ').next()).context(line.clone())?;
    for _ in 0..3 {
        ensure!(cluster.curl(&format!("http://{address}/"))? == "web");
    }
    drop(said);
    cluster.stop()
}
