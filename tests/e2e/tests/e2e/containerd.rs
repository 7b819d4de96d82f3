//! Our agent over containerd, Debian's package: what it knows of a runtime is CRI alone. Profile: routed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use coracle_cri::conformance::containerd::Containerd;
use coracle_e2e::machines::Machines;
use coracle_e2e::{SOON, eventually, layout, succeed};
use serde_json::json;

const PAUSE: &str = "coracle.test/pause:v1";
const BUSYBOX: &str = "coracle.test/busybox:v1";

/// Makes an image of busybox known to containerd.
fn import(containerd: &Containerd, dir: &Path, name: &str, command: &[&str]) -> Result<()> {
    let folder = dir.join(name.replace(['/', ':'], "-"));
    layout::busybox(&folder, json!({"Cmd": command, "Env": ["PATH=/bin"]}))?;
    let path = folder.join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    index["manifests"][0]["annotations"] = json!({"io.containerd.image.name": name});
    std::fs::write(&path, index.to_string())?;
    let archive = folder.with_extension("tar");
    succeed(std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&folder).arg("."))?;
    containerd.import(&archive)
}

/// Row: runtimes: a node over Debian's containerd runs Linux pods: volumes, probes, logs, exec, restarts
/// Profile: routed
#[test]
fn the_agent_runs_pods_over_containerd() -> Result<()> {
    let (machines, containerd) = Machines::start_over(|dir, host| {
        let containerd = Containerd::start(dir, &host.path(), "10.88.0.0/24", PAUSE)?;
        import(&containerd, dir, PAUSE, &["sleep", "2147483647"])?;
        import(&containerd, dir, BUSYBOX, &["sleep", "100000"])?;
        Ok((containerd.socket(), containerd))
    })?;
    let web = "echo started; mkdir -p /www; echo $GREETING from $(cat /settings/color) > /www/index.html; \
        exec httpd -f -p 8080 -h /www";
    machines.apply(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "blue"}}),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "initContainers": [{"name": "first", "image": BUSYBOX, "command": ["sh", "-c", "echo first > /shared/note"],
                    "volumeMounts": [{"name": "work", "mountPath": "/shared"}]}],
                "containers": [{
                    "name": "web", "image": BUSYBOX, "command": ["sh", "-c", web],
                    "env": [{"name": "GREETING", "value": "hello"}],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
                    "volumeMounts": [{"name": "work", "mountPath": "/shared"}, {"name": "settings", "mountPath": "/settings"}],
                }],
                "volumes": [{"name": "work", "emptyDir": {}}, {"name": "settings", "configMap": {"name": "settings"}}],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fails"},
            "spec": {"restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 1, "containers": [{
                "name": "main", "image": BUSYBOX, "volumeMounts": [{"name": "state", "mountPath": "/state"}],
                "command": ["sh", "-c", "test -f /state/again && exit 0; touch /state/again; exit 3"]}],
                "volumes": [{"name": "state", "emptyDir": {}}]},
        }),
    ])?;
    let why = |machines: &Machines| {
        let events = machines.kubectl(&["describe", "pods"]).unwrap_or_default();
        format!("{events}{}\n--- containerd\n{}", machines.logs(), containerd.log())
    };
    machines
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/web"])
        .with_context(|| why(&machines))?;
    let pod = machines.get(&["pod", "web"])?["status"].take();
    let container = pod["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let id = container.rsplit('/').next().unwrap_or_default();
    ensure!(containerd.ctr(&["containers", "list", "--quiet"])?.contains(id) && id.len() == 64, "{pod:#}");
    let node = machines.get(&["node", "node-1"])?["status"]["nodeInfo"].take();
    ensure!(
        node["containerRuntimeVersion"].as_str().is_some_and(|v| v.starts_with("containerd://1.6")),
        "{node:#}"
    );
    let ip = pod["podIP"].as_str().context("podIP")?;
    ensure!(machines.host(1)?.curl(&format!("http://{ip}:8080/"))? == "hello from blue\n");
    ensure!(machines.kubectl(&["logs", "web"])? == "started\n");
    ensure!(machines.kubectl(&["exec", "web", "--", "cat", "/shared/note"])? == "first\n");
    eventually("the other was started again", SOON, || {
        let status = machines.get(&["pod", "fails"])?["status"].take();
        Ok(status["phase"] == "Succeeded" && status["containerStatuses"][0]["restartCount"] == 1)
    })
    .with_context(|| why(&machines))?;
    machines.kubectl(&["delete", "pods", "--all", "--timeout=60s"]).with_context(|| why(&machines))?;
    eventually("nothing is left in containerd", SOON, || {
        Ok(containerd.ctr(&["tasks", "list", "--quiet"])?.is_empty())
    })?;
    drop(machines);
    Ok(())
}
