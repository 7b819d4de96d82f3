//! Claims that pods use and volumes that claims have are not deleted under them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::Resource;
use serde_json::json;

use crate::cache::{Key, key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, PersistentVolume, PersistentVolumeClaim, Pod};
use crate::write::{self, Writer};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Holds claims while a pod uses them.
pub struct ClaimProtection {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

/// Holds volumes while they are bound.
pub struct VolumeProtection {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

// Sets or removes the finalizer of an object: it stands as long as the object is not being deleted or in use.
async fn protect<K: Resource<DynamicType = ()>>(
    writer: &Writer,
    object: &K,
    finalizer: &str,
    used: bool,
) -> write::Result<()> {
    let held = object.meta().finalizers.iter().flatten().any(|f| f == finalizer);
    let field = match (object.is_terminating(), held, used) {
        (false, false, _) => "finalizers",
        (true, true, false) => "$deleteFromPrimitiveList/finalizers",
        _ => return Ok(()),
    };
    let body = json!({ "metadata": { "uid": object.uid(), field: [finalizer] } });
    let answer = writer.strategic(&write::path::<K>(object.namespace(), object.name()), &body).await;
    match answer {
        Err(error) if !write::is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

impl ClaimProtection {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.claims.on_change(move |_, new| {
            new.into_iter().for_each(|claim| own.queue.add(key_of(claim.as_ref())));
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            let over = new.is_none_or(|p| p.is_finished());
            let Some(pod) = new.or(old).filter(|_| over) else { return };
            pod.claims().iter().for_each(|claim| own.queue.add(key(pod.namespace(), claim)));
        });
        this
    }
}

#[async_trait]
impl Reconciler for ClaimProtection {
    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(claim) = self.caches.claims.get(key) else { return Ok(None) };
        // A pod without a node is not started with a claim that is being deleted.
        let uses = |p: &Arc<Pod>| p.node().is_some() && !p.is_finished();
        let used = self.caches.pods.by(&format!("claim:{key}")).iter().any(uses);
        protect::<PersistentVolumeClaim>(&self.writer, &claim, CLAIM, used).await?;
        Ok(None)
    }
}

impl VolumeProtection {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.volumes.on_change(move |_, new| {
            new.into_iter().for_each(|volume| own.queue.add(volume.name()));
        });
        this
    }
}

#[async_trait]
impl Reconciler for VolumeProtection {
    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(volume) = self.caches.volumes.get(key) else { return Ok(None) };
        let used = volume.status.phase.as_deref() == Some("Bound");
        protect::<PersistentVolume>(&self.writer, &volume, VOLUME, used).await?;
        Ok(None)
    }
}
