//! Events: what a controller tells people about an object. Recording never waits; what comes too fast is dropped.
//!
//! A repeated event raises the count of the first. Each object has a burst of 25 events and then one in five minutes, as
//! in Kubernetes' spam filter.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use kube::Resource;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::write::{self, Writer};

const QUEUE: usize = 4096;
const REMEMBERED: usize = 4096;
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Kubernetes cuts an Event's message here, in bytes.
const MAX_MESSAGE: usize = 1024;

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct About {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub resource_version: String,
}

impl About {
    /// A reference to an object of a static kind.
    pub fn object<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }
}

struct Record {
    about: About,
    type_: EventType,
    reason: &'static str,
    message: String,
}

/// Records events of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Record>,
}

impl Recorder {
    /// A recorder that writes through `writer` as `component`, on a task that ends with the last clone.
    pub fn new(writer: Writer, component: &str) -> Self {
        let (queue, records) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(writer, component.to_string(), records));
        Self { queue }
    }

    /// A recorder that forgets everything, for tests.
    pub fn none() -> Self {
        Self { queue: mpsc::channel(1).0 }
    }

    /// Records an event. `reason` is one CamelCase word.
    pub fn record(&self, about: About, type_: EventType, reason: &'static str, message: impl Into<String>) {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            message.truncate(end);
        }
        if self.queue.try_send(Record { about, type_, reason, message }).is_err() {
            tracing::debug!(reason, "event dropped: the queue is full");
        }
    }

    /// Records a normal event.
    pub fn normal<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(About::object(object), EventType::Normal, reason, message);
    }

    /// Records a warning.
    pub fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(About::object(object), EventType::Warning, reason, message);
    }
}

struct Seen {
    name: String,
    count: i64,
}

/// What was said before, and how much each object may still say.
#[derive(Default)]
struct Memory {
    seen: HashMap<(String, &'static str, String), Seen>,
    budgets: HashMap<String, (f64, Instant)>,
}

impl Memory {
    fn allows(&mut self, about: &About) -> bool {
        let now = Instant::now();
        if self.budgets.len() > REMEMBERED {
            self.budgets.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_secs(600));
            if self.budgets.len() > REMEMBERED {
                self.budgets.clear();
            }
        }
        let (budget, at) = self.budgets.entry(identity(about)).or_insert((BURST, now));
        *budget = (*budget + now.duration_since(*at).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        *at = now;
        let allowed = *budget >= 1.0;
        if allowed {
            *budget -= 1.0;
        }
        allowed
    }
}

fn identity(about: &About) -> String {
    format!("{}/{}/{}/{}", about.kind, about.namespace, about.name, about.uid)
}

async fn write_all(writer: Writer, component: String, mut records: mpsc::Receiver<Record>) {
    let mut memory = Memory::default();
    while let Some(record) = records.recv().await {
        if !memory.allows(&record.about) {
            continue;
        }
        if let Err(error) = write_one(&writer, &component, &mut memory, record).await {
            tracing::debug!(%error, "cannot write an event");
        }
    }
}

async fn write_one(
    writer: &Writer,
    component: &str,
    memory: &mut Memory,
    record: Record,
) -> write::Result<()> {
    let now = api_time(Timestamp::now());
    let namespace = if record.about.namespace.is_empty() { "default" } else { &record.about.namespace };
    let collection = format!("/api/v1/namespaces/{namespace}/events");
    let key = (identity(&record.about), record.reason, record.message.clone());
    if let Some(seen) = memory.seen.get_mut(&key) {
        seen.count += 1;
        let body = json!({ "count": seen.count, "lastTimestamp": now });
        match writer.merge(&format!("{collection}/{}", seen.name), &body).await {
            Err(error) if write::is_not_found(&error) => drop(memory.seen.remove(&key)),
            other => return other.map(drop),
        }
    }
    let name = format!("{}.{:016x}", record.about.name, Timestamp::now().as_nanosecond() as u64);
    let body = event(&record, component, namespace, &name, &now);
    writer.create(&collection, &body).await?;
    if memory.seen.len() >= REMEMBERED {
        memory.seen.clear();
    }
    memory.seen.insert(key, Seen { name, count: 1 });
    Ok(())
}

fn event(record: &Record, component: &str, namespace: &str, name: &str, now: &str) -> Value {
    let about = &record.about;
    let mut involved = json!({
        "apiVersion": about.api_version, "kind": about.kind, "name": about.name, "uid": about.uid,
    });
    if !about.resource_version.is_empty() {
        involved["resourceVersion"] = about.resource_version.as_str().into();
    }
    if !about.namespace.is_empty() {
        involved["namespace"] = about.namespace.as_str().into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": { "name": name, "namespace": namespace },
        "involvedObject": involved,
        "reason": record.reason,
        "message": record.message,
        "type": match record.type_ { EventType::Normal => "Normal", EventType::Warning => "Warning" },
        "source": { "component": component },
        "reportingComponent": component,
        "reportingInstance": "",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}

/// A timestamp as the API writes it: whole seconds, UTC.
pub fn api_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The same moment without its fraction of a second: what the API keeps of it.
pub fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}
