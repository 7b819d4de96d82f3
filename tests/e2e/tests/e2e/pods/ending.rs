//! How pods end when they are deleted.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use coracle_e2e::{Cluster, curl, eventually, kubectl, shown, succeed};
use serde_json::json;

use super::{SOON, apply, has, ready, status};

/// Deletion: requests in flight, followed logs, and what is left on the node.
pub fn grace(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.push("web", "web:v1")?;
    let web = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 2, "containers": [{
                "name": "web", "image": "web:v1", "ports": [{"containerPort": 8080}],
            }]},
        })
    };
    apply(cluster, &[web("drains"), web("forced")])?;
    // A request that ends within the grace is answered, and the pod goes as soon as it is.
    let (took, answer) = delete_during(cluster, "drains", 1_200, &[])?;
    ensure!(answer.is_ok_and(|body| body == "slept"), "the request within the grace failed");
    ensure!((800..1_900).contains(&took.as_millis()), "{took:?}");
    // One that does not is cut off.
    let (took, answer) = delete_during(cluster, "forced", 9_000, &["--grace-period=1"])?;
    ensure!(answer.is_err(), "a request outlived its pod");
    ensure!((900..4_000).contains(&took.as_millis()), "{took:?}");

    status(cluster, "stays", "is ready", |status| status["containerStatuses"][0]["ready"] == true)?;
    let mut follow = cluster.command(kubectl()?);
    let follow =
        follow.args(["logs", "-f", "stays"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let started = Instant::now();
    cluster.kubectl(&["delete", "pod", "stays", "--timeout=30s"])?;
    ensure!(started.elapsed() < Duration::from_secs(5), "a grace of 2 s took {:?}", started.elapsed());
    let followed = follow.wait_with_output()?;
    ensure!(followed.stdout == b"here\n", "{}", shown(&followed));
    has(&cluster.kubectl(&["get", "events"])?, &["Stopping container main"])?;
    has(&cluster.kubectl_fails(&["get", "pod", "stays"])?, &["pods \"stays\" not found"])?;
    ensure!(!left(cluster)?.is_empty(), "pods have their directories elsewhere now");
    let started = Instant::now();
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=30s"])?;
    ensure!(started.elapsed() < Duration::from_secs(10), "pods that have ended took {:?}", started.elapsed());
    eventually("directories of pods go with them", SOON, || {
        let left = left(cluster)?;
        ensure!(left.is_empty(), "{left}");
        Ok(true)
    })
}

/// Deletes a pod while it works on a request of so many milliseconds; how long that took, and what the client got.
fn delete_during(
    cluster: &Cluster,
    pod: &str,
    millis: u32,
    flags: &[&str],
) -> Result<(Duration, Result<String>)> {
    let status = status(cluster, pod, "is ready", ready)?;
    let url = format!("http://{}:8080", status["podIP"].as_str().context("podIP")?);
    eventually("the handler answers", SOON, || curl(&url).map(|_| true))?;
    let slow = std::thread::spawn(move || curl(&format!("{url}/sleep?{millis}")));
    // Until the request is under way: nothing outside the pod tells.
    std::thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    let mut args = vec!["delete", "pod", pod, "--timeout=30s"];
    args.extend(flags);
    cluster.kubectl(&args)?;
    let took = started.elapsed();
    let answer = slow.join().map_err(|_| anyhow!("the client panicked"))?;
    Ok((took, answer))
}

/// What the node keeps of pods: directories of volumes and of logs.
fn left(cluster: &Cluster) -> Result<String> {
    let names = ["-path", "*/node/pods/*", "-o", "-path", "*/logs/*_*_*"];
    succeed(Command::new("find").arg(cluster.data_dir()).args(names))
}
