//! Carries out the plan of a ReplicaSet.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use serde_json::json;

use super::plan::{Action, State, next_available, plan, status};
use crate::cache::{Cache, Cached, Key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::ownership;
use crate::pod_control::{Failure, PodControl, pod_of};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Pod, ReplicaSet, ReplicationController};
use crate::write::{self, Writer};

/// A kind that keeps a number of pods: ReplicaSets, and ReplicationControllers, which were before them.
pub trait Keeper: Cached {
    /// The kind.
    const KIND: &'static str;
    /// The controller's identity.
    const IDENTITY: &'static str;

    /// Where its objects are.
    fn cache(caches: &Informers) -> &Arc<Cache<Self>>;

    /// The object as a ReplicaSet.
    fn set(self: &Arc<Self>) -> Arc<ReplicaSet>;
}

impl Keeper for ReplicaSet {
    const KIND: &'static str = "ReplicaSet";
    const IDENTITY: &'static str = "replicaset-controller";

    fn cache(caches: &Informers) -> &Arc<Cache<Self>> {
        &caches.replica_sets
    }

    fn set(self: &Arc<Self>) -> Arc<ReplicaSet> {
        self.clone()
    }
}

impl Keeper for ReplicationController {
    const KIND: &'static str = "ReplicationController";
    const IDENTITY: &'static str = "replication-controller";

    fn cache(caches: &Informers) -> &Arc<Cache<Self>> {
        &caches.replication_controllers
    }

    fn set(self: &Arc<Self>) -> Arc<ReplicaSet> {
        let Self { metadata, spec, status } = self.as_ref().clone();
        Arc::new(ReplicaSet { metadata, spec, status })
    }
}

/// Keeps the wanted number of pods of each object.
pub struct ReplicaSetController<K = ReplicaSet> {
    caches: Arc<Informers>,
    queue: WorkQueue,
    pods: PodControl,
    kind: PhantomData<fn() -> K>,
}

impl<K: Keeper> ReplicaSetController<K> {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let pods = PodControl::new(caches.clone(), writer, events, K::KIND);
        let (queue, kind) = (WorkQueue::new(), PhantomData);
        let this = Arc::new(Self { caches: caches.clone(), queue, pods, kind });
        let own = this.clone();
        K::cache(&caches).on_change(move |old, new| {
            if let (Some(old), None) = (old, new) {
                own.pods.expectations.forget(&key_of(old.as_ref()));
            }
            if let Some(rs) = new.or(old) {
                own.queue.add(key_of(rs.as_ref()));
            }
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            if let Some(orphan) = own.pods.seen(&own.queue, old, new) {
                own.wake_adopters(orphan);
            }
        });
        this
    }

    fn wake_adopters(&self, pod: &Pod) {
        for keeper in K::cache(&self.caches).by(&format!("namespace:{}", pod.namespace())) {
            let selector = Selector::from_label_selector(&keeper.set().spec.selector);
            if selector.is_ok_and(|s| ownership::matches(&s, pod)) {
                self.queue.add(key_of(keeper.as_ref()));
            }
        }
    }

    fn candidates(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let mut pods = self.caches.pods.by(&format!("owner:{}", rs.uid()));
        pods.extend(self.caches.pods.by(&format!("orphan:{}", rs.namespace())));
        pods
    }

    // Pods of all ReplicaSets of the same Deployment.
    fn related(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let Some(owner) = rs.controller() else { return self.caches.pods.by(&format!("owner:{}", rs.uid())) };
        let siblings = self.caches.replica_sets.by(&format!("owner:{}", owner.uid));
        siblings.iter().flat_map(|s| self.caches.pods.by(&format!("owner:{}", s.uid()))).collect()
    }

    async fn act(&self, key: &Key, owner: &K, rs: &ReplicaSet, action: Action) -> Result<(), Failure> {
        match action {
            Action::Adopt { name, uid } => self.pods.adopt(owner, &name, &uid).await,
            Action::Release { name } => self.pods.release(owner, &name).await,
            Action::Create(count) => {
                let name = json!({ "generateName": format!("{}-", rs.name()) });
                let pod = pod_of(owner, &rs.spec.template, name);
                self.pods.create(key, owner, vec![pod; count]).await
            }
            Action::Delete(pods) => self.pods.delete(key, owner, pods).await,
        }
    }

    async fn write_status(&self, rs: &ReplicaSet, new: &super::Status) -> anyhow::Result<()> {
        if *new == rs.status {
            return Ok(());
        }
        let path = format!("{}/status", write::path::<K>(rs.namespace(), rs.name()));
        let body = json!({ "metadata": { "uid": rs.uid(), "resourceVersion": rs.metadata.resource_version }, "status": new });
        match self.pods.writer().merge(&path, &body).await {
            Err(error) if !write::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl<K: Keeper> Reconciler for ReplicaSetController<K> {
    fn name(&self) -> &'static str {
        K::IDENTITY
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        // Before the cache is read: what is settled now is in what is read next.
        let settled = self.pods.expectations.settled(key);
        let Some(owner) = K::cache(&self.caches).get(key) else { return Ok(None) };
        let rs = owner.set();
        let selector =
            Selector::from_label_selector(&rs.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        let (pods, related, now) = (self.candidates(&rs), self.related(&rs), Timestamp::now());
        let state = State { rs: &rs, selector: &selector, pods: &pods, related: &related, settled, now };
        let (actions, own) = plan(&state);
        let mut failure = None;
        for action in actions {
            if let Err(failed) = self.act(key, &owner, &rs, action).await {
                failure = Some(failed);
            }
        }
        let words = failure.as_ref().map(|f| (f.reason, write::words(&f.error)));
        let words = words.as_ref().map(|(reason, message)| (*reason, message.as_str()));
        self.write_status(&rs, &status(&rs, &own, words, now)).await?;
        match failure {
            Some(failure) => Err(anyhow::Error::new(failure.error).context(failure.reason)),
            None => Ok(next_available(&rs, &own, now)),
        }
    }
}
