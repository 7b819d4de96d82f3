//! The life of a bare pod's containers, from init containers to back-off, and what they log.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_e2e::Cluster;
use serde_json::{Value, json};

use super::{has, status, steps};

/// The same as `steps` with an init container in front.
pub fn with_init(node: &str, name: &str, policy: &str, mut init: Value) -> Value {
    let mut pod = steps(node, name, policy, &["print main ran"]);
    (init["name"], init["image"]) = (json!("init"), json!("steps:v1"));
    pod["spec"]["initContainers"] = json!([init]);
    pod
}

/// Init containers come before the others, and hold them back.
pub fn inits(cluster: &Cluster) -> Result<()> {
    status(cluster, "init-fails", "has failed", |status| status["phase"] == "Failed")?;
    let refused = cluster.kubectl_fails(&["logs", "init-fails", "-c", "main"])?;
    has(&refused, &["container \"main\" in pod \"init-fails\" is waiting to start: PodInitializing"])?;
    has(&cluster.kubectl(&["logs", "init-fails", "-c", "init"])?, &["oh no"])?;
    status(cluster, "init-loops", "backs off", |status| {
        status["initContainerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    })?;
    has(&cluster.kubectl(&["get", "pods"])?, &["Init:Error", "Init:CrashLoopBackOff"])?;
    // A sidecar starts first and keeps nobody from ending.
    let helped = status(cluster, "helped", "has succeeded", |status| status["phase"] == "Succeeded")?;
    let sidecar = &helped["initContainerStatuses"][0];
    ensure!(!sidecar["state"]["terminated"].is_null() && sidecar["restartCount"] == 0, "{helped:#}");
    let all = cluster.kubectl(&["logs", "helped", "--all-containers", "--prefix"])?;
    ensure!(all == "[pod/helped/main] main ran\n", "{all}");
    Ok(())
}

/// `kubectl logs` with its flags.
pub fn logs(cluster: &Cluster) -> Result<()> {
    status(cluster, "ticks", "runs", |status| status["phase"] == "Running")?;
    let started = Instant::now();
    let followed = cluster.kubectl(&["logs", "-f", "ticks"])?;
    let all: String = (1..=60).map(|n| format!("tick {n}\n")).collect();
    ensure!(followed == all, "{followed}");
    ensure!(started.elapsed() < Duration::from_secs(8), "it ended after {:?}", started.elapsed());
    ensure!(cluster.kubectl(&["logs", "ticks"])? == all);
    ensure!(cluster.kubectl(&["logs", "ticks", "--tail=2"])? == "tick 59\ntick 60\n");
    ensure!(cluster.kubectl(&["logs", "ticks", "--tail=0"])?.is_empty());
    ensure!(cluster.kubectl(&["logs", "ticks", "--limit-bytes=9"])? == "tick 1\nti");
    ensure!(cluster.kubectl(&["logs", "ticks", "--since=1h"])? == all);
    let recent = cluster.kubectl(&["logs", "ticks", "--since=2s"])?;
    ensure!(
        !recent.starts_with("tick 1\n") && (recent.is_empty() || recent.ends_with("tick 60\n")),
        "{recent}"
    );
    let stamped = cluster.kubectl(&["logs", "ticks", "--timestamps", "--tail=1"])?;
    let (time, text) = stamped.split_once(' ').context("no time")?;
    ensure!(
        text == "tick 60\n" && time.len() >= 20 && time.starts_with("20") && time.contains('T'),
        "{stamped}"
    );
    let ended = cluster.kubectl(&["logs", "ticks", &format!("--since-time={time}")])?;
    // kubectl sends whole seconds.
    ensure!(ended.ends_with("tick 60\n") && !ended.contains("tick 30\n"), "{ended}");
    let refused = cluster.kubectl_fails(&["logs", "ticks", "--previous"])?;
    has(&refused, &["previous terminated container \"main\" in pod \"ticks\" not found"])
}

/// What each restart policy makes of an exit code.
pub fn restarts(cluster: &Cluster) -> Result<()> {
    let status_of = |pod, what, met: fn(&Value) -> bool| status(cluster, pod, what, met);
    let done = status_of("once", "has succeeded", |status| status["phase"] == "Succeeded")?;
    ensure!(done["containerStatuses"][0]["restartCount"] == 0, "{done:#}");
    // A component of WASI 0.2 can say that it failed, and no number: the exit code is 1.
    let failed = status_of("never", "has failed", |status| status["phase"] == "Failed")?;
    ensure!(failed["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1, "{failed:#}");
    ensure!(failed["containerStatuses"][0]["restartCount"] == 0, "{failed:#}");
    for pod in ["always", "again"] {
        let crashed = status(cluster, pod, "backs off", |status| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })?;
        let main = &crashed["containerStatuses"][0];
        ensure!(main["restartCount"].as_i64().is_some_and(|count| count >= 1), "{main:#}");
        ensure!(main["lastState"]["terminated"]["exitCode"] == 1, "{main:#}");
        ensure!(main["lastState"]["terminated"]["reason"] == "Error", "{main:#}");
        has(
            &main["state"]["waiting"]["message"].to_string(),
            &["back-off ", "s restarting failed container=main pod="],
        )?;
        ensure!(crashed["phase"] == "Running", "{crashed:#}");
    }
    let table = cluster.kubectl(&["get", "pods"])?;
    has(&table, &["CrashLoopBackOff", "Completed", "Error", "0/1", "1/1"])?;
    has(&cluster.kubectl(&["logs", "always", "--previous"])?, &["once more"])?;
    has(&cluster.kubectl(&["logs", "always"])?, &["once more"])?;
    let described = cluster.kubectl(&["describe", "pod", "always"])?;
    has(
        &described,
        &["spec.containers{main}", "Started", "Back-off restarting failed container main", "Exit Code:    1"],
    )
}
