//! A load for hollow nodes: Deployments in namespaces of their own, and how fast their pods become ready.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::view::{Meta, Pod};
use crate::write::{self, Delete, Writer};

/// Pods of a Deployment.
const REPLICAS: usize = 100;
/// Deployments of a namespace.
const DEPLOYMENTS: usize = 10;

/// What is asked of the control plane.
#[derive(Clone, Debug)]
pub struct Load {
    /// Rounded up to whole Deployments.
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

/// Makes the load, waits until all of it is ready, and takes it away again.
///
/// # Errors
/// When the API refuses, or it takes longer than the patience.
pub async fn measure(client: kube::Client, pods: &Arc<Cache<Pod>>, load: &Load) -> anyhow::Result<Figures> {
    let writer = Writer::new(client);
    let deployments = load.pods.div_ceil(REPLICAS);
    let wanted = deployments * REPLICAS;
    let (seen, changed) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Notify::new()));
    let (own, notify, prefix) = (seen.clone(), changed.clone(), format!("{}-", load.prefix));
    pods.on_change(move |old, new| {
        let Some(pod) = new.filter(|pod| pod.namespace().starts_with(&prefix)) else { return };
        let mut seen = own.lock();
        let made = *seen.made.entry(pod.uid().to_string()).or_insert_with(Instant::now);
        if pod.is_ready() && !old.is_some_and(|old| old.is_ready()) {
            seen.took.push(made.elapsed());
            notify.notify_one();
        }
    });
    let start = Instant::now();
    let namespaces: Vec<String> =
        (0..deployments.div_ceil(DEPLOYMENTS)).map(|i| format!("{}-{i}", load.prefix)).collect();
    for namespace in &namespaces {
        let body = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": namespace } });
        match writer.create("/api/v1/namespaces", &body).await {
            Err(error) if write::is_already_exists(&error) => {}
            other => drop(other?),
        }
    }
    for number in 0..deployments {
        let Some(namespace) = namespaces.get(number / DEPLOYMENTS) else { break };
        let (name, labels) = (format!("load-{number}"), json!({ "app": format!("load-{number}") }));
        let requests = json!({ "requests": { "cpu": "100m", "memory": "64Mi" } });
        let body = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name }, "spec": {
            "replicas": REPLICAS, "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": {
                "containers": [{ "name": "c", "image": "hollow", "resources": requests }],
            } },
        } });
        writer.create(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), &body).await?;
    }
    let all = async {
        while seen.lock().took.len() < wanted {
            changed.notified().await;
        }
    };
    let in_time = tokio::time::timeout(load.patience, all).await.is_ok();
    let total = start.elapsed();
    for namespace in &namespaces {
        writer.delete(&format!("/api/v1/namespaces/{namespace}"), Delete::default()).await?;
    }
    let mut took = std::mem::take(&mut seen.lock().took);
    ensure!(in_time, "only {} of {wanted} pods were ready after {total:?}", took.len());
    took.sort();
    let at = |part: f64| {
        let place = (took.len().saturating_sub(1) as f64 * part) as usize;
        took.get(place).copied().unwrap_or_default()
    };
    Ok(Figures { pods: wanted, total, median: at(0.5), slow: at(0.99) })
}
