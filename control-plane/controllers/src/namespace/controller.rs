//! Empties a namespace that is being deleted, then lets it go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cache::{Key, key_of};
use crate::discovery::{Served, deletable};
use crate::events::api_time;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Namespace, condition};
use crate::write::{self, Delete, Writer};

const FINALIZER: &str = "kubernetes";
/// Kubernetes lets a namespace rest before it empties it (5 s there), so that a client which deletes the namespace and the
/// objects of one manifest finds those objects still there.
const GRACE: Duration = Duration::from_secs(1);

/// Finishes the deletion of namespaces.
pub struct NamespaceController {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMeta {
    remaining_item_count: Option<u64>,
}

#[derive(Deserialize)]
struct Item {
    metadata: kube::core::ObjectMeta,
}

/// What is left in a namespace.
#[derive(Default)]
struct Left {
    /// Objects by resource, such as `pods.` or `deployments.apps`.
    by_resource: BTreeMap<String, u64>,
    /// Objects by the finalizer that holds them.
    by_finalizer: BTreeMap<String, u64>,
}

impl NamespaceController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.namespaces.on_change(move |_, new| {
            if let Some(namespace) = new.filter(|n| n.is_terminating()) {
                own.queue.add_after(key_of(namespace.as_ref()), GRACE);
            }
        });
        this
    }

    async fn empty(&self, served: &Served, namespace: &str, left: &mut Left) -> write::Result<()> {
        let collection = served.path(namespace, "");
        let page: Page = self.writer.get(&format!("{collection}?limit=500")).await?;
        if page.items.is_empty() {
            return Ok(());
        }
        if served.deletes_collections {
            let how = Delete { propagation: Some("Background"), ..Delete::default() };
            self.writer.delete(&collection, how).await?;
        } else {
            for item in page.items.iter().filter(|i| i.metadata.deletion_timestamp.is_none()) {
                let name = item.metadata.name.as_deref().unwrap_or_default();
                let how = Delete { uid: item.metadata.uid.as_deref(), ..Delete::default() };
                self.writer.delete(&served.path(namespace, name), how).await?;
            }
        }
        let page: Page = self.writer.get(&format!("{collection}?limit=500")).await?;
        let count = page.items.len() as u64 + page.metadata.remaining_item_count.unwrap_or(0);
        if count > 0 {
            left.by_resource.insert(format!("{}.{}", served.resource.plural, served.resource.group), count);
        }
        for finalizer in page.items.iter().flat_map(|i| i.metadata.finalizers.iter().flatten()) {
            *left.by_finalizer.entry(finalizer.clone()).or_default() += 1;
        }
        Ok(())
    }

    async fn finalize(&self, namespace: &str) -> write::Result<()> {
        let path = write::path::<Namespace>("", namespace);
        let mut body: Value = self.writer.get(&path).await?;
        if let Some(finalizers) = body.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
            finalizers.retain(|f| f != FINALIZER);
        }
        self.writer.replace(&format!("{path}/finalize"), &body).await.map(drop)
    }

    async fn write_conditions(
        &self,
        namespace: &Namespace,
        left: &Left,
        failure: Option<&str>,
    ) -> write::Result<()> {
        let conditions = conditions(namespace, left, failure);
        if conditions.is_empty() {
            return Ok(());
        }
        let path = format!("{}/status", write::path::<Namespace>("", namespace.name()));
        let body = json!({ "metadata": { "uid": namespace.uid() }, "status": { "conditions": conditions } });
        self.writer.strategic(&path, &body).await.map(drop)
    }
}

// The conditions that change, in Kubernetes' words.
fn conditions(namespace: &Namespace, left: &Left, failure: Option<&str>) -> Vec<Value> {
    let list = |counts: &BTreeMap<String, u64>, words: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(what, n)| format!("{what} {words} {n} resource instances")).collect();
        parts.join(", ")
    };
    let content = format!("Some resources are remaining: {}", list(&left.by_resource, "has"));
    let held =
        format!("Some content in the namespace has finalizers remaining: {}", list(&left.by_finalizer, "in"));
    let rows = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_string(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".into(),
        ),
        match failure {
            None => (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".into(),
            ),
            Some(words) => (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                format!("Failed to delete all resource types, 1 remaining: {words}"),
            ),
        },
        match left.by_resource.is_empty() {
            true => (
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed".into(),
            ),
            false => ("NamespaceContentRemaining", true, "SomeResourcesRemain", content),
        },
        match left.by_finalizer.is_empty() {
            true => (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".into(),
            ),
            false => ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", held),
        },
    ];
    let now = api_time(Timestamp::now());
    let changed = rows.into_iter().filter_map(|(type_, is, reason, message)| {
        let status = if is { "True" } else { "False" };
        let before = condition(&namespace.status.conditions, type_);
        if before.is_some_and(|c| c.status == status && c.message == message) {
            return None;
        }
        Some(json!({ "type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": now }))
    });
    changed.collect()
}

#[async_trait]
impl Reconciler for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(namespace) = self.caches.namespaces.get(key).filter(|n| n.is_terminating()) else {
            return Ok(None);
        };
        if !namespace.spec.finalizers.iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        let served = deletable(self.writer.client()).await?;
        let (mut left, mut failure) = (Left::default(), None);
        for served in served.iter().filter(|s| s.namespaced) {
            if let Err(error) = self.empty(served, key, &mut left).await {
                failure = Some(error);
            }
        }
        if left.by_resource.is_empty() && failure.is_none() {
            return match self.finalize(key).await {
                Err(error) if !write::is_not_found(&error) => Err(error.into()),
                _ => Ok(None),
            };
        }
        let words = failure.as_ref().map(write::words);
        match self.write_conditions(&namespace, &left, words.as_deref()).await {
            Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => {
                return Err(error.into());
            }
            _ => {}
        }
        match failure {
            Some(error) => Err(error.into()),
            // Pods take their grace period; what else is left waits for them or for a finalizer.
            None => Ok(Some(Duration::from_millis(250))),
        }
    }
}
