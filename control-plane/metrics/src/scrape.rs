//! Asks every node for its counters, again and again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_controllers::cache::{Cache, Cached};
use coracle_controllers::view::Meta;
use futures::{StreamExt, stream};
use http::Request;
use jiff::Timestamp;
use kube::core::{DynamicResourceScope, ObjectMeta};
use kube::runtime::watcher::Config;
use kube::{Client, Resource};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use crate::reading::{MAX_PAGE, Reading};
use crate::resources::Objects;

/// The controller's name under which nodes are asked.
pub const IDENTITY: &str = "metrics-server";
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);

/// How nodes are asked.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often.
    pub period: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { period: Duration::from_secs(15) }
    }
}

/// Of a pod, what its metrics show.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodMeta {
    metadata: ObjectMeta,
}

impl Resource for PodMeta {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind(_: &()) -> std::borrow::Cow<'_, str> {
        "Pod".into()
    }
    fn group(_: &()) -> std::borrow::Cow<'_, str> {
        "".into()
    }
    fn version(_: &()) -> std::borrow::Cow<'_, str> {
        "v1".into()
    }
    fn plural(_: &()) -> std::borrow::Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Cached for PodMeta {
    fn trim(&mut self) {
        let meta = std::mem::take(&mut self.metadata);
        self.metadata = ObjectMeta {
            name: meta.name,
            namespace: meta.namespace,
            labels: meta.labels,
            creation_timestamp: meta.creation_timestamp,
            ..ObjectMeta::default()
        };
    }
}

/// Reads all nodes until `shutdown`, into `objects`.
pub async fn run(client: Client, objects: Objects, options: Options, shutdown: CancellationToken) {
    follow(&objects.nodes, &client, &shutdown);
    follow(&objects.pods, &client, &shutdown);
    let mut ticks = tokio::time::interval(options.period.max(Duration::from_millis(500)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let names: Vec<String> = objects.nodes.all().iter().map(|node| node.name().to_owned()).collect();
        objects.usage.keep(&names);
        let reads = stream::iter(names).map(|name| {
            let (client, usage) = (client.clone(), objects.usage.clone());
            async move {
                match tokio::time::timeout(PATIENCE, read(&client, &name)).await {
                    Ok(Ok(reading)) => usage.add(&name, reading, Timestamp::now().as_millisecond()),
                    Ok(Err(error)) => {
                        tracing::debug!(node = name, error = format!("{error:#}"), "read a node's usage");
                    }
                    Err(_) => tracing::debug!(node = name, "read a node's usage: no answer in time"),
                }
            }
        });
        reads.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }
}

fn follow<K: Cached>(cache: &Arc<Cache<K>>, client: &Client, shutdown: &CancellationToken) {
    tokio::spawn(cache.clone().follow(client.clone(), Config::default(), shutdown.clone()));
}

async fn read(client: &Client, node: &str) -> Result<Reading> {
    // A node's name is a DNS name: it needs no escapes.
    let path = format!("/api/v1/nodes/{node}/proxy/metrics/resource");
    let page = client.request_text(Request::get(path).body(Vec::new())?).await.context("ask the node")?;
    ensure!(page.len() <= MAX_PAGE, "the page of {} bytes is too long", page.len());
    Ok(Reading::parse(&page))
}
