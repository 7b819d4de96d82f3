//! A load for hollow nodes: Deployments in namespaces of their own, and how fast their pods become ready.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::LABEL;
use crate::cache::Cache;
use crate::view::{Meta, Pod};
use crate::write::{self, Delete, Writer};

/// Most pods of a Deployment.
const REPLICAS: usize = 100;
/// Deployments of a namespace.
const DEPLOYMENTS: usize = 10;
/// How often is looked whether the load is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What is asked of the control plane.
#[derive(Clone, Debug)]
pub struct Load {
    /// How many pods.
    pub pods: usize,
    /// The longest that it may take.
    pub patience: Duration,
    /// Namespaces are this, a hyphen and a number.
    pub prefix: String,
}

/// How fast it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub pods: usize,
    /// From the first request to the last ready pod.
    pub total: Duration,
    /// From a pod's creation to its readiness, as a watch shows them: the median and the 99th percentile.
    pub median: Duration,
    pub slow: Duration,
}

impl Figures {
    /// Pods a second.
    pub fn rate(&self) -> f64 {
        self.pods as f64 / self.total.as_secs_f64().max(0.001)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rate, total) = (self.rate(), self.total.as_secs_f64());
        write!(f, "{} pods in {total:.1} s: {rate:.0} pods/s; ", self.pods)?;
        write!(f, "from creation to ready {:.0} ms (median), ", self.median.as_secs_f64() * 1e3)?;
        write!(f, "{:.0} ms (99th percentile)", self.slow.as_secs_f64() * 1e3)
    }
}

#[derive(Default)]
struct Seen {
    made: HashMap<String, Instant>,
    took: Vec<Duration>,
}

impl Load {
    fn deployments(&self) -> usize {
        self.pods.div_ceil(REPLICAS)
    }

    fn namespaces(&self) -> impl Iterator<Item = String> + '_ {
        (0..self.deployments().div_ceil(DEPLOYMENTS)).map(|i| format!("{}-{i}", self.prefix))
    }

    fn has(&self, namespace: &str) -> bool {
        namespace.strip_prefix(&self.prefix).is_some_and(|rest| rest.starts_with('-'))
    }
}

/// Makes the load and waits until all of it is ready on hollow nodes. [`take_away`] removes it, whatever came of this.
///
/// # Errors
/// When the API refuses, or it takes longer than the patience.
pub async fn measure(client: kube::Client, pods: &Arc<Cache<Pod>>, load: &Load) -> anyhow::Result<Figures> {
    let writer = Writer::new(client);
    let (seen, changed) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Notify::new()));
    let (own, notify, of) = (seen.clone(), changed.clone(), load.clone());
    pods.on_change(move |old, new| {
        let Some(pod) = new.filter(|pod| of.has(pod.namespace())) else { return };
        let mut seen = own.lock();
        let made = *seen.made.entry(pod.uid().to_string()).or_insert_with(Instant::now);
        if pod.is_ready() && !old.is_some_and(|old| old.is_ready()) {
            seen.took.push(made.elapsed());
            notify.notify_one();
        }
    });
    let start = Instant::now();
    let namespaces: Vec<String> = load.namespaces().collect();
    for namespace in &namespaces {
        let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
        let made = writer.create("/api/v1/namespaces", &body).await;
        made.with_context(|| format!("make namespace {namespace}; a load of before may still go away"))?;
    }
    for number in 0..load.deployments() {
        let Some(namespace) = namespaces.get(number / DEPLOYMENTS) else { break };
        let (name, labels) = (format!("load-{number}"), json!({ "app": format!("load-{number}") }));
        let replicas = REPLICAS.min(load.pods - number * REPLICAS);
        let requests = json!({ "requests": { "cpu": "100m", "memory": "64Mi" } });
        let body = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name }, "spec": {
            "replicas": replicas, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": {
                "nodeSelector": { LABEL: "true" },
                "containers": [{ "name": "c", "image": "hollow", "resources": requests }],
            } },
        } });
        writer.create(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), &body).await?;
    }
    let all = async {
        while seen.lock().took.len() < load.pods {
            changed.notified().await;
        }
    };
    let in_time = tokio::time::timeout(load.patience, all).await.is_ok();
    let total = start.elapsed();
    let mut took = std::mem::take(&mut seen.lock().took);
    ensure!(in_time, "only {} of {} pods were ready after {total:.1?}", took.len(), load.pods);
    took.sort();
    let at = |part: f64| {
        let place = (took.len().saturating_sub(1) as f64 * part) as usize;
        took.get(place).copied().unwrap_or_default()
    };
    Ok(Figures { pods: load.pods, total, median: at(0.5), slow: at(0.99) })
}

/// Removes what [`measure`] made, while the nodes are still played, and waits until its pods are gone.
///
/// # Errors
/// When the API refuses, or it takes longer than the patience.
pub async fn take_away(client: kube::Client, pods: &Arc<Cache<Pod>>, load: &Load) -> anyhow::Result<()> {
    let writer = Writer::new(client);
    for namespace in load.namespaces() {
        match writer.delete(&format!("/api/v1/namespaces/{namespace}"), Delete::default()).await {
            Err(error) if write::is_not_found(&error) => {}
            other => drop(other.with_context(|| format!("delete namespace {namespace}"))?),
        }
    }
    let gone = async {
        while pods.all().iter().any(|pod| load.has(pod.namespace())) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        for namespace in load.namespaces() {
            let path = format!("/api/v1/namespaces/{namespace}");
            while !writer.get::<write::Written>(&path).await.is_err_and(|error| write::is_not_found(&error)) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    };
    let gone = tokio::time::timeout(load.patience, gone).await;
    gone.context("the load does not go away")
}
