//! Every seam is proved by killing the process on each side of it in turn, under load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually, load};

use super::hello;

/// Row: self-healing: server, agent and CRI service killed in turn under 32 connections fail no request and restart no container
#[test]
fn mission_m25_killing_server_agent_and_runtime_fails_no_request() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    hello::deploy(&cluster)?;
    let before = containers(&cluster)?;
    let address = hello::service_address(&cluster)?.parse()?;
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Runtime::new()?;
    let running = runtime.spawn(load::run(address, 32, 10_000, stop.clone()));
    for process in ["node", "server", "runtime"] {
        cluster.kill(process)?;
        eventually(&format!("the API answers after {process} was killed"), Duration::from_secs(30), || {
            cluster.kubectl(&["get", "--raw", "/readyz"]).map(|_| true)
        })?;
    }
    stop.store(true, Ordering::Relaxed);
    let outcome = runtime.block_on(running)?;
    ensure!(outcome.failures.is_empty(), "{} answered; failures: {:?}", outcome.answered, outcome.failures);
    ensure!(outcome.answered >= 10_000);
    unchanged(&cluster, &before)?;
    cluster.stop()
}

/// Row: self-healing: `coracle up` after a kill -9 adopts the pods
#[test]
fn up_adopts_what_a_killed_up_left() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    hello::deploy(&cluster)?;
    let before = containers(&cluster)?;
    cluster.kill_up()?;
    cluster.up()?;
    unchanged(&cluster, &before)?;
    // It is a whole cluster again: what is asked of it happens.
    cluster.kubectl(&["-n", "hello", "scale", "deploy/hello", "--replicas=4"])?;
    cluster.kubectl(&["-n", "hello", "rollout", "status", "deploy/hello", "--timeout=60s"])?;
    cluster.stop()
}

/// Container ids and restart counts by pod.
fn containers(cluster: &Cluster) -> Result<BTreeMap<String, (String, i64)>> {
    let pods = cluster.get(&["-n", "hello", "pods"])?;
    let items = pods["items"].as_array().context("items")?;
    items
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            let id = status["containerID"].as_str().context("a container without an id")?;
            let restarts = status["restartCount"].as_i64().context("restartCount")?;
            Ok((pod["metadata"]["name"].to_string(), (id.to_owned(), restarts)))
        })
        .collect()
}

fn unchanged(cluster: &Cluster, before: &BTreeMap<String, (String, i64)>) -> Result<()> {
    let now = containers(cluster)?;
    ensure!(now == *before, "containers changed: {before:?} became {now:?}");
    Ok(())
}
