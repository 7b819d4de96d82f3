//! Suite `pods`: from create to Ready over the API, one after another and many at once, and what they cost.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coracle_e2e::Cluster;
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use crate::figures::Figures;
use crate::process;
use crate::samples::Samples;

const SUITE: &str = "pods";
const NAMESPACE: &str = "bench";
/// Pods created one after another.
const SEQUENCE: usize = 50;
/// No further pod of the sequence starts after this.
const SEQUENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long one pod may take to become Ready, or to go.
const POD_LIMIT: Duration = Duration::from_secs(10);
/// After this the processes are called idle.
const SETTLE: Duration = Duration::from_secs(3);

pub async fn run(cluster: &Cluster, bursts: &[u32], figures: &mut Figures) -> Result<()> {
    let kubeconfig = Kubeconfig::read_from(cluster.data_dir().join("kubeconfig"))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    tokio::time::sleep(SETTLE).await;
    let empty = memory(cluster, "idle", figures)?;

    eprintln!("{SEQUENCE} pods one after another");
    cluster.push("hello", "hello:v1")?;
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    sequence(&Api::namespaced(client.clone(), NAMESPACE), figures).await?;
    let deployments = Api::namespaced(client.clone(), NAMESPACE);
    let deployment = serde_json::from_value(json!({"metadata": {"name": "bench"}, "spec": {
        "replicas": 0, "selector": {"matchLabels": {"app": "bench"}},
        "template": {"metadata": {"labels": {"app": "bench"}}, "spec": pod_spec()}}}))?;
    deployments.create(&PostParams::default(), &deployment).await?;
    let pods = Api::namespaced(client, NAMESPACE);
    for &replicas in bursts {
        eprintln!("a Deployment of {replicas}");
        scale(&deployments, &pods, replicas, figures).await?;
        tokio::time::sleep(SETTLE).await;
        let state = format!("{replicas}-pods");
        let full = memory(cluster, &state, figures)?;
        let each = (full as f64 - empty as f64) / f64::from(replicas) / 1024.0;
        figures.add(SUITE, format!("{state}/pss-per-pod"), "KiB", Some(each));
        empty_again(&deployments, &pods).await?;
    }
    Ok(())
}

/// Pods one after another, each gone before the next; the first of all pulls and compiles its image.
async fn sequence(pods: &Api<Pod>, figures: &mut Figures) -> Result<()> {
    let (mut ready, mut gone, mut errors) = (Samples::default(), Samples::default(), 0);
    let began = Instant::now();
    for number in 0..=SEQUENCE {
        if began.elapsed() > SEQUENCE_LIMIT {
            break;
        }
        match one(pods, &format!("bench-{number}")).await {
            Ok((to_ready, _)) if number == 0 => {
                figures.add(SUITE, "create-to-ready/first", "ms", millis(Some(to_ready)));
            }
            Ok((to_ready, to_gone)) => {
                ready.add(to_ready);
                gone.add(to_gone);
            }
            Err(error) => {
                errors += 1;
                eprintln!("pod bench-{number}: {error:#}");
            }
        }
    }
    figures.add(SUITE, "create-to-ready/pods", "pods", Some(ready.len() as f64));
    figures.add(SUITE, "create-to-ready/p50", "ms", millis(ready.percentile(50)));
    figures.add(SUITE, "create-to-ready/p99", "ms", millis(ready.percentile(99)));
    figures.add(SUITE, "create-to-ready/errors", "pods", Some(f64::from(errors)));
    figures.add(SUITE, "delete-to-gone/p50", "ms", millis(gone.percentile(50)));
    figures.add(SUITE, "delete-to-gone/p99", "ms", millis(gone.percentile(99)));
    Ok(())
}

/// How long one pod took from the create call to the event that says Ready, and from the delete call to the event that
/// says it is gone.
async fn one(pods: &Api<Pod>, name: &str) -> Result<(Duration, Duration)> {
    let version = pods.list(&ListParams::default().limit(1)).await?.metadata.resource_version;
    let only = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(pods.watch(&only, &version.context("the list has no resourceVersion")?).await?);
    let pod = serde_json::from_value(json!({"metadata": {"name": name}, "spec": pod_spec()}))?;

    let began = Instant::now();
    pods.create(&PostParams::default(), &pod).await?;
    until(
        &mut events,
        POD_LIMIT,
        |event| matches!(event, WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_ready(pod)),
    )
    .await
    .context("create to Ready")?;
    let ready = began.elapsed();

    let began = Instant::now();
    pods.delete(name, &DeleteParams::default()).await?;
    until(&mut events, POD_LIMIT, |event| matches!(event, WatchEvent::Deleted(_)))
        .await
        .context("delete to gone")?;
    Ok((ready, began.elapsed()))
}

/// A Deployment without pods grows to so many that are all Ready.
async fn scale(
    deployments: &Api<Deployment>,
    pods: &Api<Pod>,
    replicas: u32,
    figures: &mut Figures,
) -> Result<()> {
    let version = deployments.list(&ListParams::default()).await?.metadata.resource_version;
    let version = version.context("the list has no resourceVersion")?;
    let mut events = pin!(deployments.watch(&WatchParams::default(), &version).await?);

    let began = Instant::now();
    set_replicas(deployments, replicas).await?;
    let all = i32::try_from(replicas)?;
    let done = until(&mut events, patience(replicas as usize), |event| {
        matches!(event, WatchEvent::Added(one) | WatchEvent::Modified(one)
            if one.status.as_ref().and_then(|status| status.ready_replicas) == Some(all))
    })
    .await;
    let took = began.elapsed();
    let ready = pods.list(&ListParams::default()).await?.items.iter().filter(|pod| is_ready(pod)).count();
    let took = done.is_ok().then_some(took);
    figures.add(SUITE, format!("deployment-0-to-{replicas}/all-ready"), "ms", millis(took));
    figures.add(SUITE, format!("deployment-0-to-{replicas}/pods-ready"), "pods", Some(ready as f64));
    done.with_context(|| format!("a Deployment of {replicas} pods; {ready} are Ready"))
}

async fn set_replicas(deployments: &Api<Deployment>, replicas: u32) -> Result<()> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    deployments.patch("bench", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Scales the Deployment to nothing, and waits until none of its pods is left.
async fn empty_again(deployments: &Api<Deployment>, pods: &Api<Pod>) -> Result<()> {
    let there = pods.list(&ListParams::default()).await?;
    let version = there.metadata.resource_version.context("the list has no resourceVersion")?;
    let mut events = pin!(pods.watch(&WatchParams::default(), &version).await?);
    set_replicas(deployments, 0).await?;
    let mut left = there.items.len();
    let gone = until(&mut events, patience(left), |event| {
        left -= usize::from(matches!(event, WatchEvent::Deleted(_)));
        left == 0
    });
    gone.await.context("pods of the Deployment did not go")
}

/// How long so many pods may take to come or to go.
fn patience(pods: usize) -> Duration {
    Duration::from_secs(60).max(Duration::from_millis(40) * u32::try_from(pods).unwrap_or(u32::MAX))
}

fn pod_spec() -> serde_json::Value {
    json!({"terminationGracePeriodSeconds": 1, "containers": [
        {"name": "hello", "image": "hello:v1", "ports": [{"containerPort": 8080}]}]})
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|one| one.type_ == "Ready" && one.status == "True"))
}

/// Reads events until one is `met`.
async fn until<K>(
    events: &mut (impl Stream<Item = kube::Result<WatchEvent<K>>> + Unpin),
    limit: Duration,
    mut met: impl FnMut(&WatchEvent<K>) -> bool,
) -> Result<()> {
    let wait = async {
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Error(status) => bail!("the watch ended with an error: {}", status.message),
                event if met(&event) => return Ok(()),
                _ => {}
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(limit, wait).await.with_context(|| format!("not within {limit:?}"))?
}

/// Adds the memory of every process, and of all; the sum of what is theirs alone (PSS), in bytes.
fn memory(cluster: &Cluster, state: &str, figures: &mut Figures) -> Result<u64> {
    let folder = cluster.data_dir().parent().context("the data directory has no parent")?.canonicalize()?;
    let (mut rss, mut pss) = (0, 0);
    let mib = |bytes: u64| Some(bytes as f64 / 1_048_576.0);
    // There may be several of a name, of wasm hosts above all.
    let mut by_name = BTreeMap::<_, (u64, u64)>::new();
    for one in process::of_cluster(&folder)? {
        let memory = process::memory(one.pid).with_context(|| format!("memory of {}", one.name))?;
        let sum = by_name.entry(one.name).or_default();
        *sum = (sum.0 + memory.rss, sum.1 + memory.pss);
    }
    for (name, sum) in by_name {
        figures.add(SUITE, format!("{state}/{name}/rss"), "MiB", mib(sum.0));
        figures.add(SUITE, format!("{state}/{name}/pss"), "MiB", mib(sum.1));
        rss += sum.0;
        pss += sum.1;
    }
    figures.add(SUITE, format!("{state}/all/rss"), "MiB", mib(rss));
    figures.add(SUITE, format!("{state}/all/pss"), "MiB", mib(pss));
    Ok(pss)
}

fn millis(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64() * 1000.0)
}
