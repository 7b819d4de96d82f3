//! Linux images beside wasm. Profile: routed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Profile, eventually, layout};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

fn cluster() -> Result<Cluster> {
    let cluster = Cluster::start(Profile::Routed)?;
    let dir = cluster.data_dir().with_file_name("busybox");
    layout::busybox(
        &dir,
        json!({"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin", "FROM=image"], "StopSignal": "SIGKILL"}),
    )?;
    cluster.coracle(&["image", "push", &dir.display().to_string(), "busybox:v1"])?;
    cluster.push("web", "web:v1")?;
    Ok(cluster)
}

fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = cluster.file("objects.json", &list.to_string())?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

fn pod(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

fn ready(cluster: &Cluster, name: &str) -> Result<String> {
    let waited = cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]);
    waited.with_context(|| {
        format!("{}\n{}", cluster.kubectl(&["describe", "pod", name]).unwrap_or_default(), cluster.logs())
    })?;
    let pod = cluster.get(&["pod", name])?;
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

/// Waits until the logs of a container have this text.
fn says(cluster: &Cluster, pod: &str, container: &str, text: &str) -> Result<()> {
    eventually(&format!("the log of {pod}/{container} has {text:?}"), SOON, || {
        let log = cluster.kubectl(&["logs", pod, "-c", container])?;
        ensure!(log.contains(text), "{log}");
        Ok(true)
    })
}

/// Row: Linux containers: an image that is not wasm runs through the OCI runtime: its own address, logs, exit codes, limits, exec probes; wasm and Linux containers share a pod
#[test]
fn mission_m30_a_linux_image_runs_beside_wasm() -> Result<()> {
    let mut cluster = cluster()?;
    let shell = |script: &str| json!(["/bin/sh", "-c", script]);
    let linux =
        |name: &str, script: &str| json!({"name": name, "image": "busybox:v1", "command": shell(script)});
    let mut server = linux(
        "c",
        "echo $FROM $(hostname); echo hello from linux > /tmp/index.html; exec httpd -f -p 8080 -h /tmp",
    );
    server["readinessProbe"] = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1});
    let mut greedy = linux(
        "c",
        "head -c 200000000 /dev/zero | wc -c | cat > /dev/null; x=$(head -c 90000000 /dev/zero | tr '\\\\0' x); echo $x | wc -c",
    );
    greedy["command"] = shell("exec sh -c 'x=0123456789; while true; do x=$x$x; done'");
    greedy["resources"] = json!({"limits": {"memory": "32Mi"}});
    apply(
        &cluster,
        &[
            pod("server", json!({"terminationGracePeriodSeconds": 1, "containers": [server]})),
            pod("fails", json!({"restartPolicy": "Never", "containers": [linux("c", "echo out; exit 7")]})),
            pod("greedy", json!({"restartPolicy": "Never", "containers": [greedy]})),
            pod(
                "mixed",
                json!({"terminationGracePeriodSeconds": 1, "volumes": [{"name": "shared", "emptyDir": {}}], "containers": [
                    {"name": "wasm", "image": "web:v1", "ports": [{"containerPort": 8080}], "env": [{"name": "POD", "value": "mixed"}]},
                    {"name": "linux", "image": "busybox:v1", "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
                        "command": shell("until wget -q -O - http://127.0.0.1:8080/; do sleep 0.2; done; ip -4 addr show eth0; echo done; exec sleep 100000")},
                ]}),
            ),
        ],
    )?;

    // Its own address, reached from the node; its log; what the image says of itself.
    let address = ready(&cluster, "server")?;
    let host = cluster.host().context("no host")?;
    ensure!(host.curl(&format!("http://{address}:8080/"))?.contains("hello from linux"));
    says(&cluster, "server", "c", "image server")?;

    // Exit codes and limits.
    for (name, code, reason) in [("fails", 7, "Error"), ("greedy", 137, "OOMKilled")] {
        eventually(&format!("{name} has ended"), SOON, || {
            let pod = cluster.get(&["pod", name])?;
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            ensure!(ended["exitCode"] == code && ended["reason"] == reason, "{}", pod["status"]);
            Ok(true)
        })?;
    }
    ensure!(cluster.kubectl(&["logs", "fails"])?.contains("out"));

    // One pod, one address: the Linux container reaches the wasm one on the loopback.
    let address = ready(&cluster, "mixed")?;
    says(&cluster, "mixed", "linux", "hello from mixed")?;
    says(&cluster, "mixed", "linux", &format!("inet {address}/"))?;
    ensure!(host.curl(&format!("http://{address}:8080/"))?.contains("hello from mixed"));

    // The runtime may die: nothing is restarted.
    let ids = |cluster: &Cluster| -> Result<Vec<String>> {
        let pods = cluster.get(&["pods", "server", "mixed"])?;
        let statuses = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|p| p["status"]["containerStatuses"].as_array().cloned().unwrap_or_default());
        Ok(statuses.map(|s| format!("{} {}", s["containerID"], s["restartCount"])).collect())
    };
    let before = ids(&cluster)?;
    cluster.kill("runtime")?;
    eventually("the runtime is back", SOON, || {
        ensure!(host.curl(&format!("http://{address}:8080/"))?.contains("hello from mixed"));
        Ok(cluster.get(&["node", "node-1"])?["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")))
    })?;
    ensure!(ids(&cluster)? == before, "{before:?} became {:?}", ids(&cluster)?);
    cluster.kubectl(&["delete", "pod", "--all", "--timeout=60s"])?;
    cluster.stop()
}
