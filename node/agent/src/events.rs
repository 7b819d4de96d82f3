//! Events: written by one task, repeated ones as a count, bounded in rate per object.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events that wait to be written; more are dropped.
const QUEUE: usize = 4096;
/// Events that are remembered for counting.
const MAX_KNOWN: usize = 4096;
/// An object may have so many at once, and then one in five minutes, as client-go's filter has it.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
/// Events about an object count as the same within this time.
const SAME: Duration = Duration::from_secs(600);

/// The source of the Events that a kubelet writes.
const COMPONENT: &str = "kubelet";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    field: Option<String>,
    reason: String,
    message: String,
}

struct Message {
    about: ObjectReference,
    warning: bool,
    reason: &'static str,
    message: String,
}

/// Takes Events; cheap to clone, and never waits.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Message>,
    dropped: Arc<AtomicU64>,
}

impl Recorder {
    /// A recorder, and the task that writes, which ends at `shutdown`.
    pub fn new(
        client: Client,
        node: String,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (queue, messages) = mpsc::channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let (known, budgets) = (HashMap::new(), HashMap::new());
        let writer = Writer { client, node, known, budgets, dropped: dropped.clone() };
        (Self { queue, dropped }, writer.run(messages, shutdown))
    }

    /// About a pod, or about one of its containers.
    pub fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        warning: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let init = crate::pods::state::init_containers(pod);
        let main = crate::pods::state::main_containers(pod);
        let field = container.map(|name| {
            let list = match name {
                name if init.iter().any(|c| c.name == name) => "initContainers",
                name if main.iter().any(|c| c.name == name) => "containers",
                _ => "ephemeralContainers",
            };
            format!("spec.{list}{{{name}}}")
        });
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: field,
        };
        self.send(Message { about, warning, reason, message: message.into() });
    }

    /// About this node, by its name.
    pub fn own_node(&self, name: &str, warning: bool, reason: &'static str, message: impl Into<String>) {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        self.node(&node, warning, reason, message);
    }

    /// About the node.
    pub fn node(&self, node: &Node, warning: bool, reason: &'static str, message: impl Into<String>) {
        let name = node.metadata.name.clone();
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            uid: name.clone(),
            name,
            ..Default::default()
        };
        self.send(Message { about, warning, reason, message: message.into() });
    }

    fn send(&self, message: Message) {
        if self.queue.try_send(message).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Known {
    name: String,
    count: i32,
    last: Instant,
}

struct Budget {
    tokens: f64,
    at: Instant,
}

struct Writer {
    client: Client,
    node: String,
    known: HashMap<Key, Known>,
    budgets: HashMap<String, Budget>,
    /// Of the queue since it was last said.
    dropped: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => {
                        self.write(message).await;
                        if messages.is_empty() {
                            self.say_dropped();
                        }
                    }
                    None => return,
                },
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Once for many: a log that a flood fills helps nobody.
    fn say_dropped(&self) {
        let count = self.dropped.swap(0, Ordering::Relaxed);
        if count > 0 {
            tracing::warn!(count, "Events were dropped: too many waited to be written");
        }
    }

    fn allowed(&mut self, uid: &str) -> bool {
        if self.budgets.len() >= MAX_KNOWN {
            self.budgets.retain(|_, b| b.at.elapsed() < SAME);
        }
        if self.budgets.len() >= MAX_KNOWN {
            self.budgets.clear();
        }
        let now = Instant::now();
        let budget = self.budgets.entry(uid.to_owned()).or_insert(Budget { tokens: BURST, at: now });
        let earned = now.duration_since(budget.at).as_secs_f64() * REFILL_PER_SECOND;
        budget.tokens = (budget.tokens + earned).min(BURST);
        budget.at = now;
        if budget.tokens < 1.0 {
            return false;
        }
        budget.tokens -= 1.0;
        true
    }

    async fn write(&mut self, message: Message) {
        let uid = message.about.uid.clone().unwrap_or_default();
        if !self.allowed(&uid) {
            return;
        }
        let key = Key {
            uid,
            field: message.about.field_path.clone(),
            reason: message.reason.to_owned(),
            message: message.message.clone(),
        };
        if self.known.len() >= MAX_KNOWN {
            self.known.retain(|_, k| k.last.elapsed() < SAME);
        }
        if self.known.len() >= MAX_KNOWN {
            self.known.clear();
        }
        let namespace = message.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        if let Some(known) = self.known.get_mut(&key)
            && known.last.elapsed() < SAME
        {
            known.count = known.count.saturating_add(1);
            known.last = Instant::now();
            let patch = serde_json::json!({"count": known.count, "lastTimestamp": Time(Timestamp::now())});
            match api.patch(&known.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return tracing::debug!(%error, "could not count an Event"),
                Ok(_) => return,
            }
        }
        let event = self.event(message);
        let name = event.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &event).await {
            Ok(_) => {
                self.known.insert(key, Known { name, count: 1, last: Instant::now() });
            }
            Err(error) => tracing::debug!(%error, message = event.message, "could not write an Event"),
        }
    }

    fn event(&self, message: Message) -> Event {
        let now = Timestamp::now();
        let object = message.about.name.clone().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{object}.{:016x}", now.as_nanosecond())),
                namespace: Some(message.about.namespace.clone().unwrap_or_else(|| "default".into())),
                ..Default::default()
            },
            involved_object: message.about,
            type_: Some(if message.warning { "Warning" } else { "Normal" }.into()),
            reason: Some(message.reason.into()),
            message: Some(message.message.chars().take(1024).collect()),
            source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(self.node.clone()) }),
            reporting_component: Some(COMPONENT.into()),
            reporting_instance: Some(self.node.clone()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Default::default()
        }
    }
}
