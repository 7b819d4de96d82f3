//! Carries out the plan of a StatefulSet.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::identity::{claims, ordinal, owners, pod, pod_name};
use super::plan::{Action, State, plan};
use crate::cache::{Cache, Key, key};
use crate::events::Recorder;
use crate::history::{self, REVISION_HASH};
use crate::informers::Informers;
use crate::pod_control::{Owner, PodControl};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, PersistentVolumeClaim, Pod, StatefulSet};
use crate::write::{self, Delete, Writer};

impl Owner for StatefulSet {
    fn cache(caches: &Informers) -> &Arc<Cache<Self>> {
        &caches.stateful_sets
    }

    fn selector(&self) -> &Value {
        &self.spec.selector
    }

    fn may_adopt(&self, orphan: &Pod) -> bool {
        ordinal(self, orphan).is_some()
    }
}

/// Keeps StatefulSets.
pub struct StatefulSetController {
    pods: Arc<PodControl>,
}

impl StatefulSetController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        Arc::new(Self { pods: PodControl::new::<StatefulSet>(caches, writer, events) })
    }

    fn writer(&self) -> &Writer {
        self.pods.writer()
    }

    async fn act(&self, set: &StatefulSet, revisions: &Revisions, action: Action) -> anyhow::Result<()> {
        match action {
            Action::Create { ordinal, update } => {
                let (name, template) = if update { &revisions.update } else { &revisions.current };
                self.make_claims(set, ordinal).await?;
                self.create(set, pod(set, template, name, ordinal), ordinal).await
            }
            Action::Replace((name, uid)) => self.delete(set, &name, &uid).await,
            Action::ScaleDown((name, uid)) => self.delete(set, &name, &uid).await,
        }
    }

    async fn make_claims(&self, set: &StatefulSet, ordinal: i64) -> anyhow::Result<()> {
        for (_, claim) in claims(set, ordinal) {
            let name = claim["metadata"]["name"].as_str().unwrap_or_default().to_string();
            if self.pods.caches().claims.get(&key(set.namespace(), &name)).is_some() {
                continue;
            }
            let path = write::path::<PersistentVolumeClaim>(set.namespace(), "");
            let words = format!("Claim {name} Pod {} in StatefulSet {}", pod_name(set, ordinal), set.name());
            match self.writer().create(&path, &claim).await {
                Ok(_) => {
                    self.pods.events().normal(set, "SuccessfulCreate", format!("create {words} success"));
                }
                Err(error) if write::is_already_exists(&error) => {}
                Err(error) => {
                    let why = write::words(&error);
                    let words = format!("create {words} failed error: {why}");
                    self.pods.events().warning(set, "FailedCreate", words);
                    return Err(error).context("create a claim");
                }
            }
        }
        Ok(())
    }

    // Claims go with the set or with a pod that is one too many, as its policy says; it may have changed.
    async fn own_claims(&self, set: &StatefulSet, pod: &Pod) -> anyhow::Result<()> {
        let Some(ordinal) = ordinal(set, pod) else { return Ok(()) };
        let within = (set.start()..set.start() + set.replicas()).contains(&ordinal);
        let condemned = (!within).then(|| (pod.name(), pod.uid()));
        for (_, claim) in claims(set, ordinal) {
            let name = claim["metadata"]["name"].as_str().unwrap_or_default();
            let Some(claim) = self.pods.caches().claims.get(&key(set.namespace(), name)) else { continue };
            let there = claim.metadata.owner_references.as_deref().unwrap_or_default();
            let Some(owners) = owners(set, there, condemned) else { continue };
            let path = write::path::<PersistentVolumeClaim>(set.namespace(), name);
            let body = json!({ "metadata": {
                "uid": claim.uid(), "resourceVersion": claim.metadata.resource_version, "ownerReferences": owners,
            } });
            match self.writer().merge(&path, &body).await {
                Err(error) if !write::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn create(&self, set: &StatefulSet, body: Value, ordinal: i64) -> anyhow::Result<()> {
        let words = format!("Pod {} in StatefulSet {}", pod_name(set, ordinal), set.name());
        match self.writer().create(&write::path::<Pod>(set.namespace(), ""), &body).await {
            Ok(_) => {
                self.pods.events().normal(set, "SuccessfulCreate", format!("create {words} successful"));
                Ok(())
            }
            // The one before is not gone yet, or the cache has not shown it yet: its event comes.
            Err(error) if write::is_already_exists(&error) => Ok(()),
            Err(error) if write::is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let why = write::words(&error);
                let words = format!("create {words} failed error: {why}");
                self.pods.events().warning(set, "FailedCreate", words);
                Err(error).context("create a pod")
            }
        }
    }

    async fn delete(&self, set: &StatefulSet, name: &str, uid: &str) -> anyhow::Result<()> {
        let path = write::path::<Pod>(set.namespace(), name);
        match self.writer().delete(&path, Delete { uid: Some(uid), ..Delete::default() }).await {
            Ok(()) => {
                let words = format!("delete Pod {name} in StatefulSet {} successful", set.name());
                self.pods.events().normal(set, "SuccessfulDelete", words);
                Ok(())
            }
            Err(error) if write::is_conflict(&error) => Ok(()),
            Err(error) => Err(error).context("delete a pod"),
        }
    }

    async fn revisions(&self, set: &StatefulSet) -> anyhow::Result<Revisions> {
        let collisions = set.status.collision_count.unwrap_or(0);
        let template = &set.spec.template;
        let all = history::sync(self.pods.caches(), self.writer(), set, template, collisions).await?;
        let update = all.last().context("no revision")?;
        let update = (update.name().to_string(), set.spec.template.as_ref().clone());
        let current = all.iter().find(|r| set.status.current_revision.as_deref() == Some(r.name()));
        let current = current.map_or_else(|| update.clone(), |r| (r.name().into(), history::template(r)));
        Ok(Revisions { update, current, all })
    }
}

struct Revisions {
    update: (String, Value),
    current: (String, Value),
    all: Vec<Arc<crate::view::ControllerRevision>>,
}

#[async_trait]
impl Reconciler for StatefulSetController {
    fn name(&self) -> &'static str {
        "statefulset-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.pods.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(set) = self.pods.caches().stateful_sets.get(key) else { return Ok(None) };
        let selector =
            Selector::from_label_selector(&set.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        let mut pods = self.pods.claimed(set.as_ref(), &selector).await?;
        pods.retain(|p| ordinal(&set, p).is_some());
        if !set.is_terminating() {
            for pod in pods.iter().filter(|p| !p.is_terminating()) {
                self.own_claims(&set, pod).await?;
            }
        }
        let revisions = self.revisions(&set).await?;
        let (actions, status, again) = plan(&State {
            set: &set,
            pods: &pods,
            current: &revisions.current.0,
            update: &revisions.update.0,
            now: Timestamp::now(),
        });
        let mut failed = Ok(());
        for action in actions {
            failed = failed.and(self.act(&set, &revisions, action).await);
        }
        if status != set.status {
            self.writer().status(set.as_ref(), json!(status)).await?;
        }
        failed?;
        let mut live: HashSet<String> =
            pods.iter().filter_map(|p| p.label(REVISION_HASH).map(String::from)).collect();
        live.extend([revisions.update.0, revisions.current.0]);
        let limit = set.spec.revision_history_limit;
        history::truncate(self.writer(), set.namespace(), &revisions.all, &live, limit).await?;
        Ok(again)
    }
}
