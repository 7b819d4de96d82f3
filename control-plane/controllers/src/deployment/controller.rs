//! Carries out the plan of a Deployment.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Action, State, plan};
use super::{REVISION, hash};
use crate::cache::{Key, key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::ownership::{self, Claim, claim};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Deployment, Meta, Pod, ReplicaSet};
use crate::write::{self, Delete, Writer};

/// Moves each Deployment from its old template to its new one.
pub struct DeploymentController {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
}

impl DeploymentController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, events, queue: WorkQueue::new() });
        let own = this.clone();
        caches.deployments.on_change(move |old, new| {
            if let Some(d) = new.or(old) {
                own.queue.add(key_of(d.as_ref()));
            }
        });
        let own = this.clone();
        caches.replica_sets.on_change(move |old, new| {
            for rs in old.into_iter().chain(new) {
                own.wake(rs);
            }
        });
        let own = this.clone();
        // Recreate waits for the last old pod to be gone.
        caches.pods.on_change(move |old, new| {
            if let (Some(pod), None) = (old, new)
                && let Some(owner) = pod.controller().filter(|o| o.kind == "ReplicaSet")
                && let Some(rs) = own.caches.replica_sets.get(&key(pod.namespace(), &owner.name))
                && let Some(owner) = rs.controller()
                && let d = key(rs.namespace(), &owner.name)
                && own.caches.deployments.get(&d).is_some_and(|d| d.recreates())
            {
                own.queue.add(d);
            }
        });
        this
    }

    fn wake(&self, rs: &ReplicaSet) {
        match rs.controller() {
            Some(owner) if owner.kind == "Deployment" => self.queue.add(key(rs.namespace(), &owner.name)),
            Some(_) => {}
            None => {
                for d in self.caches.deployments.by(&format!("namespace:{}", rs.namespace())) {
                    let selector = Selector::from_label_selector(&d.spec.selector);
                    if selector.is_ok_and(|s| ownership::matches(&s, rs)) {
                        self.queue.add(key_of(d.as_ref()));
                    }
                }
            }
        }
    }

    // Its ReplicaSets, after adopting and releasing.
    async fn claimed(&self, d: &Deployment, selector: &Selector) -> anyhow::Result<Vec<Arc<ReplicaSet>>> {
        let mut sets = self.caches.replica_sets.by(&format!("owner:{}", d.uid()));
        sets.extend(self.caches.replica_sets.by(&format!("orphan:{}", d.namespace())));
        let mut own = Vec::new();
        for rs in sets {
            let path = write::path::<ReplicaSet>(rs.namespace(), rs.name());
            match claim(d, selector, rs.as_ref()) {
                Claim::Keep => own.push(rs),
                Claim::Adopt => {
                    self.writer.strategic(&path, &ownership::adoption(d, rs.uid())).await?;
                    own.push(rs);
                }
                Claim::Release => drop(self.writer.merge(&path, &ownership::release(d, rs.as_ref())).await?),
                Claim::Ignore => {}
            }
        }
        Ok(own)
    }

    async fn act(&self, d: &Deployment, sets: &[Arc<ReplicaSet>], action: Action) -> anyhow::Result<()> {
        let set_path = |name: &str| write::path::<ReplicaSet>(d.namespace(), name);
        let version = |name: &str| {
            sets.iter().find(|rs| rs.name() == name).and_then(|rs| rs.metadata.resource_version.clone())
        };
        match action {
            Action::Create { name, replicas, body } => self.create(d, &name, replicas, &body).await?,
            Action::Scale { name, from, to, annotations } => {
                // With the version that the plan has seen: a scale from a stale cache must not land.
                let body = json!({
                    "metadata": { "annotations": annotations, "resourceVersion": version(&name) },
                    "spec": { "replicas": to },
                });
                self.writer.merge(&set_path(&name), &body).await?;
                if from != to {
                    let way = if to > from { "up" } else { "down" };
                    self.events.normal(
                        d,
                        "ScalingReplicaSet",
                        format!("Scaled {way} replica set {name} from {from} to {to}"),
                    );
                }
            }
            Action::Amend { name, body } => drop(self.writer.merge(&set_path(&name), &body).await?),
            Action::Delete { name, uid } => {
                self.writer.delete(&set_path(&name), Delete { uid: Some(&uid), ..Delete::default() }).await?;
            }
            Action::Revision(revision) => {
                let body = json!({ "metadata": { "uid": d.uid(), "annotations": { REVISION: revision.to_string() } } });
                self.writer.merge(&write::path::<Deployment>(d.namespace(), d.name()), &body).await?;
            }
            Action::Status(status) => self.write_status(d, &json!(status)).await?,
        }
        Ok(())
    }

    async fn write_status(&self, d: &Deployment, status: &Value) -> write::Result<()> {
        let path = format!("{}/status", write::path::<Deployment>(d.namespace(), d.name()));
        let answer =
            self.writer.merge(&path, &json!({ "metadata": { "uid": d.uid() }, "status": status })).await;
        answer.map(drop)
    }

    async fn create(&self, d: &Deployment, name: &str, replicas: i64, body: &Value) -> anyhow::Result<()> {
        match self.writer.create(&write::path::<ReplicaSet>(d.namespace(), ""), body).await {
            Ok(_) => {
                if replicas > 0 {
                    let words = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.events.normal(d, "ScalingReplicaSet", words);
                }
                Ok(())
            }
            Err(error) if write::is_already_exists(&error) => self.collision(d, name, error).await,
            Err(error) if write::is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let words = format!("Failed to create new replica set \"{name}\": {}", write::words(&error));
                self.events.warning(d, "ReplicaSetCreateError", words);
                Err(error.into())
            }
        }
    }

    // The name is taken: by our own ReplicaSet that the cache has not shown yet, or by another template with the same hash.
    async fn collision(&self, d: &Deployment, name: &str, error: kube::Error) -> anyhow::Result<()> {
        let there: ReplicaSet = self.writer.get(&write::path::<ReplicaSet>(d.namespace(), name)).await?;
        let ours = there.controller().is_some_and(|o| o.uid == d.uid());
        if ours && hash::same(&there.spec.template, &d.spec.template) {
            return Ok(());
        }
        let next = d.status.collision_count.unwrap_or(0) + 1;
        self.write_status(d, &json!({ "collisionCount": next })).await?;
        Err(error.into())
    }
}

#[async_trait]
impl Reconciler for DeploymentController {
    fn name(&self) -> &'static str {
        "deployment-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(d) = self.caches.deployments.get(key) else { return Ok(None) };
        let selector =
            Selector::from_label_selector(&d.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        if selector.is_everything() {
            let words = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(d.as_ref(), "SelectingAll", words);
            return Ok(None);
        }
        let sets = self.claimed(&d, &selector).await?;
        let pods: Vec<Arc<Pod>> = if d.recreates() {
            sets.iter().flat_map(|rs| self.caches.pods.by(&format!("owner:{}", rs.uid()))).collect()
        } else {
            Vec::new()
        };
        let (actions, again) =
            plan(&State { deployment: &d, sets: &sets, pods: &pods, now: Timestamp::now() });
        for action in actions {
            match self.act(&d, &sets, action).await {
                Err(error) if error.downcast_ref::<kube::Error>().is_some_and(write::is_not_found) => {
                    return Ok(None);
                }
                other => other?,
            }
        }
        Ok(again)
    }
}
