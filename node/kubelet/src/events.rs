//! Events in Kubernetes' words: written in the background, counted when they repeat, never waited for.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::mpsc;

const QUEUE: usize = 1024;
/// An event that repeats within this time is counted on the first.
const WINDOW: Duration = Duration::from_secs(600);
const MAX_KNOWN: usize = 4096;

/// Takes events; when more come than can be written, the newest are dropped and logged.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
}

struct Record {
    object: Value,
    namespace: String,
    kind: &'static str,
    reason: &'static str,
    message: String,
}

struct Known {
    name: String,
    count: i32,
    last: Instant,
}

impl Recorder {
    /// Starts the writer.
    pub fn start(client: Client, node_name: String) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        tokio::spawn(write(client, node_name, records));
        Self { queue }
    }

    /// Something that went as it should.
    pub fn normal(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(pod, container, "Normal", reason, message.into());
    }

    /// Something to look at.
    pub fn warning(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(pod, container, "Warning", reason, message.into());
    }

    fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: &'static str,
        reason: &'static str,
        message: String,
    ) {
        let meta = &pod.metadata;
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": meta.namespace, "name": meta.name, "uid": meta.uid,
            "fieldPath": container.map(|name| format!("spec.containers{{{name}}}")),
        });
        let namespace = meta.namespace.clone().unwrap_or_default();
        tracing::debug!(pod = meta.name, namespace, reason, message, "event");
        if self.queue.try_send(Record { object, namespace, kind, reason, message }).is_err() {
            tracing::warn!(reason, "more events than can be written: one is lost");
        }
    }
}

async fn write(client: Client, node_name: String, mut records: mpsc::Receiver<Record>) {
    let mut known: HashMap<String, Known> = HashMap::new();
    while let Some(record) = records.recv().await {
        if known.len() > MAX_KNOWN {
            known.retain(|_, one| one.last.elapsed() < WINDOW);
        }
        if known.len() > MAX_KNOWN {
            known.clear();
        }
        let key = format!("{} {} {}", record.object, record.reason, record.message);
        let api = Api::<Event>::namespaced(client.clone(), &record.namespace);
        let now = Timestamp::now();
        if let Some(before) = known.get_mut(&key).filter(|one| one.last.elapsed() < WINDOW) {
            before.count += 1;
            before.last = Instant::now();
            let patch = json!({"count": before.count, "lastTimestamp": now});
            if api.patch(&before.name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
        }
        let name = record.object["name"].as_str().unwrap_or_default();
        let event = json!({
            "metadata": {"name": format!("{name}.{:x}", now.as_nanosecond()), "namespace": record.namespace},
            "involvedObject": record.object, "reason": record.reason, "message": record.message,
            "type": record.kind, "count": 1, "firstTimestamp": now, "lastTimestamp": now,
            "source": {"component": "kubelet", "host": node_name},
            "reportingComponent": "kubelet", "reportingInstance": node_name,
        });
        let written = match serde_json::from_value::<Event>(event) {
            Ok(event) => api.create(&PostParams::default(), &event).await,
            Err(error) => Err(kube::Error::SerdeError(error)),
        };
        match written {
            Ok(event) => {
                let name = event.metadata.name.unwrap_or_default();
                known.insert(key, Known { name, count: 1, last: Instant::now() });
            }
            Err(error) => tracing::debug!(reason = record.reason, %error, "write an event"),
        }
    }
}
