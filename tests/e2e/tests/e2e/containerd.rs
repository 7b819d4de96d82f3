//! Our agent over containerd, Debian's package: what it knows of a runtime is CRI alone. Profile: routed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use coracle_cri::conformance::containerd::Containerd;
use coracle_e2e::machines::Machines;
use coracle_e2e::{Ended, SOON, eventually, layout, succeed};
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

/// What a node over containerd does with what a pod asks for.
const FLAGS: [&str; 6] = [
    "--seccomp-default",
    "--cpu-manager-policy=static",
    "--reserved-cpus=0",
    "--memory-manager-policy=Static",
    "--reserved-memory=0:memory=100Mi",
    "--topology-manager-policy=single-numa-node",
];

/// Processors and memory of its own, where the pod asks for whole ones; the runtime's filter of system calls, where it names
/// none.
fn confined(machines: &Machines) -> Result<()> {
    let status = machines.kubectl(&["exec", "web", "--", "cat", "/proc/self/status"])?;
    let said = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.map(|rest| rest.trim_start_matches(':').trim().to_owned()).unwrap_or_default()
    };
    ensure!(said("Seccomp") == "2", "{status}");
    ensure!(said("Cpus_allowed_list").parse::<u32>().is_ok_and(|cpu| cpu > 0), "{status}");
    ensure!(said("Mems_allowed_list") == "0", "{status}");
    Ok(())
}

/// CPU and memory of the pod that works, in both forms.
fn measured(machines: &Machines) -> Result<()> {
    let raw = |path: &str| machines.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-1/proxy/{path}")]);
    eventually("the pod's use is told", SOON, || {
        let text = raw("metrics/resource")?;
        let value = |name: &str, labels: &str| -> f64 {
            let of = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(labels));
            let line = text.lines().find(of).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|v| v.parse().ok()).unwrap_or(0.0)
        };
        let (container, pod) =
            ("{container=\"web\",namespace=\"default\",pod=\"web\"}", "{namespace=\"default\",pod=\"web\"}");
        // (The loop of its start takes a while of a processor.)
        Ok(value("container_cpu_usage_seconds_total", container) > 0.02
            && value("container_memory_working_set_bytes", container) > 4096.0
            && value("pod_cpu_usage_seconds_total", pod) > 0.02
            && value("pod_memory_working_set_bytes", pod) > 4096.0)
    })
    .with_context(|| raw("metrics/resource").unwrap_or_default())?;
    let summary: serde_json::Value = serde_json::from_str(&raw("stats/summary")?)?;
    let all = summary["pods"].as_array().context("no pods")?;
    let pod = all.iter().find(|pod| pod["podRef"]["name"] == "web").with_context(|| summary.to_string())?;
    for one in [pod, &pod["containers"][0]] {
        let cpu = one["cpu"]["usageCoreNanoSeconds"].as_u64();
        let memory = one["memory"]["workingSetBytes"].as_u64();
        ensure!(cpu > Some(20_000_000) && memory > Some(4096), "{pod:#}");
    }
    ensure!(
        pod["containers"][0]["name"] == "web" && pod["ephemeral-storage"]["usedBytes"].is_u64(),
        "{pod:#}"
    );
    Ok(())
}

/// Row: runtimes: a node over Debian's containerd runs Linux pods: volumes, probes, logs, exec, restarts, CPU and memory in its metrics, processors and memory of their own
/// Profile: routed
#[test]
fn the_agent_runs_pods_over_containerd() -> Result<Ended> {
    let (machines, containerd) = Machines::start_over(&FLAGS, |dir, host| {
        let containerd = Containerd::start(dir, &host.path(), "10.88.0.0/24", PAUSE)?;
        import(&containerd, dir, PAUSE, &["sleep", "2147483647"])?;
        import(&containerd, dir, BUSYBOX, &["sleep", "100000"])?;
        Ok((containerd.socket(), containerd))
    })?;
    let web = "echo started; i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; mkdir -p /www; echo $GREETING from $(cat /settings/color) > /www/index.html; \
        exec httpd -f -p 8080 -h /www";
    machines.apply(&[
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"color": "blue"}}),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "initContainers": [{"name": "first", "image": BUSYBOX, "command": ["sh", "-c", "echo first > /shared/note"],
                    "resources": {"limits": {"cpu": "10m", "memory": "32Mi"}},
                    "volumeMounts": [{"name": "work", "mountPath": "/shared"}]}],
                "containers": [{
                    "name": "web", "image": BUSYBOX, "command": ["sh", "-c", web],
                    "resources": {"limits": {"cpu": "1", "memory": "32Mi"}},
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
    let id = container.strip_prefix("containerd://").unwrap_or_default();
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
    confined(&machines)?;
    measured(&machines)?;
    eventually("the other was started again", SOON, || {
        let status = machines.get(&["pod", "fails"])?["status"].take();
        Ok(status["phase"] == "Succeeded" && status["containerStatuses"][0]["restartCount"] == 1)
    })
    .with_context(|| why(&machines))?;
    machines.kubectl(&["delete", "pods", "--all", "--timeout=60s"]).with_context(|| why(&machines))?;
    eventually("nothing is left in containerd", SOON, || {
        Ok(containerd.ctr(&["tasks", "list", "--quiet"])?.is_empty())
    })?;
    // It runs on the node's host.
    drop(containerd);
    machines.stop()
}
