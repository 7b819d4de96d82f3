//! Carries out the plan of a ReplicaSet.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use serde_json::json;

use super::plan::{State, Step, next_available, plan, status};
use crate::cache::Key;
use crate::events::Recorder;
use crate::informers::Informers;
use crate::pod_control::{Failure, Owner, PodControl, pod_of};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Pod, ReplicaSet, ReplicationController};
use crate::write::{self, Writer};

/// A kind that keeps a number of pods: ReplicaSets, and ReplicationControllers, which were before them.
pub trait Keeper: Owner {
    /// The controller's identity.
    const IDENTITY: &'static str;
    /// Whether its status says how many pods are ending.
    const TELLS_TERMINATING: bool;

    /// The object as a ReplicaSet.
    fn set(self: &Arc<Self>) -> Arc<ReplicaSet>;
}

impl Keeper for ReplicaSet {
    const IDENTITY: &'static str = "replicaset-controller";
    const TELLS_TERMINATING: bool = true;

    fn set(self: &Arc<Self>) -> Arc<ReplicaSet> {
        self.clone()
    }
}

impl Keeper for ReplicationController {
    const IDENTITY: &'static str = "replication-controller";
    const TELLS_TERMINATING: bool = false;

    fn set(self: &Arc<Self>) -> Arc<ReplicaSet> {
        let Self { metadata, spec, status } = self.as_ref().clone();
        Arc::new(ReplicaSet { metadata, spec, status })
    }
}

/// Keeps the wanted number of pods of each object.
pub struct ReplicaSetController<K = ReplicaSet> {
    pods: Arc<PodControl>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Keeper> ReplicaSetController<K> {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        Arc::new(Self { pods: PodControl::new::<K>(caches, writer, events), kind: PhantomData })
    }

    // Pods of all ReplicaSets of the same Deployment.
    fn related(&self, rs: &ReplicaSet) -> Vec<Arc<Pod>> {
        let caches = self.pods.caches();
        let Some(owner) = rs.controller() else { return caches.pods.by(&format!("owner:{}", rs.uid())) };
        let siblings = caches.replica_sets.by(&format!("owner:{}", owner.uid));
        siblings.iter().flat_map(|s| caches.pods.by(&format!("owner:{}", s.uid()))).collect()
    }

    async fn act(&self, key: &Key, owner: &K, rs: &ReplicaSet, step: Step) -> Result<(), Failure> {
        match step {
            Step::Nothing => Ok(()),
            Step::Create(count) => {
                let name = json!({ "generateName": format!("{}-", rs.name()) });
                let pod = pod_of(owner, &rs.spec.template, name);
                self.pods.create(key, owner, vec![pod; count]).await
            }
            Step::Delete(pods) => self.pods.delete(key, owner, pods).await,
        }
    }
}

#[async_trait]
impl<K: Keeper> Reconciler for ReplicaSetController<K> {
    fn name(&self) -> &'static str {
        K::IDENTITY
    }

    fn queue(&self) -> &WorkQueue {
        &self.pods.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        // Before the cache is read: what is settled now is in what is read next.
        let settled = self.pods.expectations.settled(key);
        let Some(owner) = K::cache(self.pods.caches()).get(key) else { return Ok(None) };
        let rs = owner.set();
        let selector =
            Selector::from_label_selector(&rs.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        let own = self.pods.claimed(owner.as_ref(), &selector).await?;
        let (related, now) = (self.related(&rs), Timestamp::now());
        let step = plan(&State { rs: &rs, own: &own, related: &related, settled, now });
        let failure = self.act(key, &owner, &rs, step).await.err();
        let words = failure.as_ref().map(|f| (f.reason, write::words(&f.error)));
        let words = words.as_ref().map(|(reason, message)| (*reason, message.as_str()));
        let mut new = status(&rs, &own, words, now);
        new.terminating_replicas = new.terminating_replicas.filter(|_| K::TELLS_TERMINATING);
        if new != rs.status {
            self.pods.writer().status(owner.as_ref(), json!(new)).await?;
        }
        match failure {
            Some(failure) => Err(anyhow::Error::new(failure.error).context(failure.reason)),
            None => Ok(next_available(&rs, &own, now)),
        }
    }
}
