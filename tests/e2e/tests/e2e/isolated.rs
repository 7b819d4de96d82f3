//! Pods with a process of their own: RuntimeClass `wasm-isolated`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, curl, eventually};
use serde_json::{Value, json};

fn deployment(name: &str, class: &str) -> Value {
    let labels = json!({"app": name});
    let env = json!([{"name": "POD", "value": name}]);
    let container = json!({"name": "web", "image": "web:v1", "env": env, "ports": [{"containerPort": 8080}]});
    let spec = json!({"runtimeClassName": class, "containers": [container]});
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": spec}}})
}

fn service(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 8080}]}})
}

/// The processes of isolated hosts of this cluster.
fn isolated(cluster: &Cluster) -> Vec<i32> {
    let folder = cluster.data_dir().join("runtime/isolated/");
    let ours = |pid: &i32| {
        let line =
            std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("wasm-host") && line.contains(&folder.display().to_string())
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(ours).collect()
}

/// The only pod of a Deployment: its name, container id and restarts.
fn pod(cluster: &Cluster, app: &str) -> Result<(String, String, i64)> {
    let pods = cluster.get(&["pods", "-l", &format!("app={app}")])?;
    let pod = &pods["items"][0];
    let status = &pod["status"]["containerStatuses"][0];
    Ok((
        pod["metadata"]["name"].as_str().context("name")?.to_owned(),
        status["containerID"].as_str().context("containerID")?.to_owned(),
        status["restartCount"].as_i64().context("restartCount")?,
    ))
}

fn answers(cluster: &Cluster, app: &str) -> Result<()> {
    let address =
        cluster.get(&["service", app])?["spec"]["clusterIP"].as_str().context("clusterIP")?.to_owned();
    eventually(&format!("{app} answers"), SOON, || {
        let answer = curl(&format!("http://{address}:8080/"))?;
        ensure!(answer == format!("hello from {app}\n"), "{answer}");
        Ok(true)
    })
}

/// Row: isolation: RuntimeClass wasm-isolated gives a pod a process of its own, which survives the runtime's end and takes nobody along at its own
#[test]
fn an_isolated_pod_has_a_process_of_its_own() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("web", "web:v1")?;
    ensure!(cluster.kubectl(&["get", "runtimeclasses"])?.contains("wasm-isolated"));
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        deployment("alone", "wasm-isolated"), service("alone"), deployment("together", "wasm"), service("together"),
    ]});
    let file = cluster.file("isolated.json", &objects.to_string())?;
    cluster.kubectl(&["apply", "-f", &file])?;
    for app in ["alone", "together"] {
        cluster.kubectl(&["rollout", "status", &format!("deploy/{app}"), "--timeout=60s"])?;
        answers(&cluster, app)?;
    }
    let host = isolated(&cluster);
    ensure!(host.len() == 1, "processes of isolated pods: {host:?}");
    let (before, neighbour) = (pod(&cluster, "alone")?, pod(&cluster, "together")?);

    cluster.kill("runtime")?;
    answers(&cluster, "alone")?;
    cluster.kubectl(&["logs", "deploy/alone"])?;
    ensure!(isolated(&cluster) == host, "{:?} instead of {host:?}", isolated(&cluster));
    ensure!(pod(&cluster, "alone")? == before);

    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host[0]), nix::sys::signal::Signal::SIGKILL)?;
    answers(&cluster, "together")?;
    eventually("the pod is restarted in another process", Duration::from_secs(60), || {
        let now = pod(&cluster, "alone")?;
        Ok(now.0 == before.0 && now.2 == before.2 + 1 && isolated(&cluster).len() == 1)
    })?;
    answers(&cluster, "alone")?;
    ensure!(isolated(&cluster) != host);
    ensure!(pod(&cluster, "together")? == neighbour, "the neighbour was restarted");

    cluster.kubectl(&["delete", "deploy", "alone", "--timeout=60s"])?;
    eventually("its process ends with the pod", Duration::from_secs(60), || {
        Ok(isolated(&cluster).is_empty())
    })?;
    cluster.stop()
}
