//! The main job: a manifest becomes a running wasm service.

use anyhow::{Context, Result, ensure};
use coracle_e2e::left::counts;
use coracle_e2e::{Cluster, Ended, Profile, SOON, curl, eventually, root};

/// Pushes hello:v1 and applies the example.
pub fn deploy(cluster: &Cluster) -> Result<()> {
    cluster.push("hello", "hello:v1")?;
    copy_manifests(cluster)?;
    cluster.kubectl(&["apply", "-f", &manifests(cluster)])?;
    cluster.kubectl(&["-n", "hello", "rollout", "status", "deploy/hello", "--timeout=60s"])?;
    Ok(())
}

fn manifests(cluster: &Cluster) -> String {
    cluster.data_dir().with_file_name("manifests").display().to_string()
}

fn copy_manifests(cluster: &Cluster) -> Result<()> {
    let target = manifests(cluster);
    std::fs::create_dir_all(&target)?;
    for entry in std::fs::read_dir(root().join("examples/hello/manifests"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), std::path::Path::new(&target).join(entry.file_name()))?;
    }
    Ok(())
}

/// `http://ADDRESS:8080/` of the Service.
pub fn service_address(cluster: &Cluster) -> Result<String> {
    let service = cluster.get(&["-n", "hello", "service", "hello"])?;
    let ip = service["spec"]["clusterIP"].as_str().context("the Service has no clusterIP")?;
    Ok(format!("{ip}:8080"))
}

/// Row: workloads: a Deployment, its pods and its Service from manifests: tables, describe, logs, scale, replacement, deletion, after which nothing is held on to
#[test]
fn mission_m29_a_manifest_becomes_a_running_wasm_service() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster)?;

    let tables = cluster.kubectl(&["-n", "hello", "get", "deploy,rs,pods,svc", "-o", "wide"])?;
    for word in ["READY", "UP-TO-DATE", "3/3", "Running", "CLUSTER-IP", "hello:v1", "CONTAINERS"] {
        ensure!(tables.contains(word), "no {word} in\n{tables}");
    }

    let address = service_address(&cluster)?;
    eventually("the Service answers", SOON, || {
        let answer = curl(&format!("http://{address}/"))?;
        ensure!(answer.starts_with("Hello from hello-"), "{answer}");
        Ok(true)
    })?;
    let pods = cluster.get(&["-n", "hello", "pods", "-l", "app=hello"])?;
    let pod = &pods["items"][0];
    let (name, ip) = (
        pod["metadata"]["name"].as_str().context("name")?,
        pod["status"]["podIP"].as_str().context("podIP")?,
    );
    let answer = curl(&format!("http://{ip}:8080/"))?;
    ensure!(answer.contains(name), "{name} answered {answer}");
    eventually("the pod's log has its request", SOON, || {
        Ok(cluster.kubectl(&["-n", "hello", "logs", name])?.contains("request "))
    })?;
    let described = cluster.kubectl(&["-n", "hello", "describe", "pod", name])?;
    for word in ["Successfully assigned", "Started", "Ready", "hello:v1"] {
        ensure!(described.contains(word), "no {word} in\n{described}");
    }

    cluster.kubectl(&["-n", "hello", "scale", "deploy/hello", "--replicas=5"])?;
    cluster.kubectl(&["-n", "hello", "rollout", "status", "deploy/hello", "--timeout=60s"])?;
    ensure!(cluster.get(&["-n", "hello", "pods"])?["items"].as_array().is_some_and(|all| all.len() == 5));
    cluster.kubectl(&["-n", "hello", "delete", "pod", name])?;
    eventually("the pod is replaced", SOON, || {
        let ready = cluster.get(&["-n", "hello", "deploy", "hello"])?["status"]["readyReplicas"] == 5;
        Ok(ready && cluster.kubectl(&["-n", "hello", "get", "pod", name]).is_err())
    })?;

    // The same without kubectl.
    let table = cluster.coracle(&["get", "pods", "-n", "hello"])?;
    ensure!(table.contains("Running"), "{table}");
    ensure!(cluster.coracle(&["apply", "-f", &manifests(&cluster)])?.contains("unchanged"));

    cluster.kubectl(&["delete", "-f", &manifests(&cluster), "--timeout=60s"])?;
    let rest = cluster.kubectl(&["get", "all", "-A"])?;
    ensure!(!rest.contains("hello"), "left behind:\n{rest}");
    nothing_is_held(&cluster)?;
    cluster.stop()
}

/// Whoever comes and goes again, more of them than before, leaves nothing behind: caches and pools are filled by now.
fn nothing_is_held(cluster: &Cluster) -> Result<()> {
    let before = counts::count(cluster)?;
    cluster.kubectl(&["apply", "-f", &manifests(cluster)])?;
    cluster.kubectl(&["-n", "hello", "scale", "deploy/hello", "--replicas=24"])?;
    cluster.kubectl(&["-n", "hello", "rollout", "status", "deploy/hello", "--timeout=60s"])?;
    let address = service_address(cluster)?;
    eventually("the Service answers again", SOON, || {
        Ok(curl(&format!("http://{address}/"))?.starts_with("Hello from hello-"))
    })?;
    let held = counts::count(cluster)?;
    let more = |kind: &str| held.get(kind) > before.get(kind);
    ensure!(more("descriptors of hosts") && more("files of node"), "{before:?} {held:?}");
    cluster.kubectl(&["delete", "-f", &manifests(cluster), "--timeout=60s"])?;
    counts::settles(cluster, &before)
}
