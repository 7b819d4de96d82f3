//! How many pods each revision gets: follows the readings of every node's gateway.
//!
//! A pod starts as soon as a request has to wait; the rest is decided once a second over a window.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use coracle_gateway::demand::{PATH, PERIOD, Report, RevisionKey};
use futures::io::AsyncBufReadExt;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub mod decide;
pub mod settings;
#[cfg(test)]
mod tests;
mod window;

use crate::plan::Standing;
use crate::plan::revision::deployment_name;
use crate::types::{REVISION_LABEL, Revision};
use decide::{Decision, Pods, decide};
use settings::Settings;
use window::Window;

/// Between two tries to follow a gateway.
const RETRY: Duration = Duration::from_secs(1);
/// Reports that wait to be read; a gateway sends one a second.
const QUEUE: usize = 256;

/// A line of a node's gateway; None when it can no longer be followed.
type Told = (String, Option<Report>);

/// Runs for ever.
pub async fn run(client: Client) {
    let (revisions, watch_revisions) = cache::<Revision>(&client, watcher::Config::default());
    let ours = watcher::Config::default().labels(REVISION_LABEL);
    let (deployments, watch_deployments) = cache::<Deployment>(&client, ours);
    let (nodes, watch_nodes) = cache::<Node>(&client, watcher::Config::default());
    let (send, told) = mpsc::channel(QUEUE);
    let scaler = Scaler {
        client: client.clone(),
        revisions,
        deployments,
        windows: HashMap::new(),
        readings: HashMap::new(),
    };
    tokio::join!(
        watch_revisions,
        watch_deployments,
        watch_nodes,
        follow_all(client, nodes, send),
        scaler.run(told)
    );
}

fn cache<K>(client: &Client, config: watcher::Config) -> (Store<K>, impl Future<Output = ()> + use<K>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let api: Api<K> = Api::all(client.clone());
    let work = async move {
        let mut events = std::pin::pin!(watcher(api, config).default_backoff().reflect(writer));
        while events.next().await.is_some() {}
    };
    (store, work)
}

/// Follows the gateway of every node there is.
async fn follow_all(client: Client, nodes: Store<Node>, send: mpsc::Sender<Told>) {
    let mut followed: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
    loop {
        let present: Vec<String> = nodes
            .state()
            .iter()
            .filter(|node| node.annotations().contains_key(coracle_gateway::ADDRESS_ANNOTATION))
            .map(|node| node.name_any())
            .collect();
        followed.retain(|name, task| {
            let stays = present.contains(name);
            if !stays {
                task.abort();
            }
            stays
        });
        for name in present {
            let (client, send) = (client.clone(), send.clone());
            followed.entry(name.clone()).or_insert_with(|| tokio::spawn(follow(client, name, send)));
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(client: Client, node: String, send: mpsc::Sender<Told>) {
    loop {
        if let Err(error) = follow_once(&client, &node, &send).await {
            tracing::debug!(error = format!("{error:#}"), node, "cannot follow a gateway");
        }
        if send.send((node.clone(), None)).await.is_err() {
            return;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow_once(client: &Client, node: &str, send: &mpsc::Sender<Told>) -> anyhow::Result<()> {
    let request = http::Request::get(format!("/api/v1/nodes/{node}/proxy{PATH}")).body(Vec::new())?;
    let mut lines = client.request_stream(request).await?.lines();
    // A gateway tells something every second: silence means that the connection is dead.
    while let Some(line) = tokio::time::timeout(PERIOD * 5, lines.try_next()).await?? {
        send.send((node.to_owned(), Some(serde_json::from_str(&line)?))).await?;
    }
    Ok(())
}

struct Scaler {
    client: Client,
    revisions: Store<Revision>,
    deployments: Store<Deployment>,
    windows: HashMap<RevisionKey, Window>,
    /// The last of each node and revision.
    readings: HashMap<String, HashMap<RevisionKey, (f64, u32)>>,
}

impl Scaler {
    async fn run(mut self, mut told: mpsc::Receiver<Told>) {
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            tokio::select! {
                message = told.recv() => match message {
                    Some((node, report)) => self.hear(&node, report).await,
                    None => return,
                },
                _ = ticks.tick() => self.scale_all().await,
            }
        }
    }

    /// Takes up what a gateway said. A revision whose requests wait and that has no pods gets one at once.
    async fn hear(&mut self, node: &str, report: Option<Report>) {
        let Some(report) = report else {
            self.readings.remove(node);
            return;
        };
        let before = self.readings.remove(node).unwrap_or_default();
        let mut now = HashMap::new();
        for reading in report.revisions {
            let window = self.windows.entry(reading.key.clone()).or_default();
            if let Some((seconds, _)) = before.get(&reading.key) {
                window.add((reading.request_seconds - seconds).max(0.0));
            }
            now.insert(reading.key.clone(), (reading.request_seconds, reading.in_flight));
            if reading.held > 0 {
                self.scale(&reading.key).await;
            }
        }
        self.readings.insert(node.to_owned(), now);
    }

    async fn scale_all(&mut self) {
        let revisions = self.revisions.state();
        for window in self.windows.values_mut() {
            window.tick(Instant::now());
        }
        self.windows.retain(|key, _| revisions.iter().any(|revision| names(revision, key)));
        for revision in revisions {
            let key = RevisionKey {
                namespace: revision.namespace().unwrap_or_default(),
                revision: revision.name_any(),
            };
            self.windows.entry(key.clone()).or_default();
            self.scale(&key).await;
        }
    }

    /// Sets the size of a revision's Deployment where it differs from what is decided.
    async fn scale(&mut self, key: &RevisionKey) {
        let Some(revision) = self.revisions.find(|revision| names(revision, key)) else { return };
        let name = deployment_name(&key.revision);
        let found = self.deployments.find(|deployment| {
            deployment.name_any() == name && deployment.namespace().as_deref() == Some(key.namespace.as_str())
        });
        let Some(deployment) = found else { return };
        let in_flight = self.readings.values().filter_map(|node| node.get(key)).map(|(_, count)| count).sum();
        let Some(window) = self.windows.get_mut(key) else { return };
        let pods = Pods {
            wanted: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or_default(),
            available: deployment.status.as_ref().and_then(|s| s.available_replicas).unwrap_or_default(),
            starting: is_starting(&revision),
        };
        let settings = Settings::of(&revision);
        let wanted = match decide(&settings, window, in_flight, pods, Instant::now()) {
            Decision::Stay => return,
            Decision::Scale(wanted) => wanted,
        };
        tracing::info!(
            namespace = key.namespace,
            revision = key.revision,
            from = pods.wanted,
            to = wanted,
            "scale"
        );
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({"spec": {"replicas": wanted}});
        if let Err(error) = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            tracing::warn!(%error, deployment = name, "cannot scale");
        }
    }
}

/// Whether a revision has yet to find out if it can serve.
fn is_starting(revision: &Revision) -> bool {
    let before = revision.status.as_ref().map_or(&[][..], |status| &status.conditions);
    matches!(Standing::read(before, "Ready"), Standing::Unknown(..))
}

fn names(revision: &Revision, key: &RevisionKey) -> bool {
    revision.name_any() == key.revision && revision.namespace().as_deref() == Some(key.namespace.as_str())
}
