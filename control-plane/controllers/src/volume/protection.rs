//! Claims that pods use and volumes that claims have are not deleted under them.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use crate::cache::{Cache, Cached, Key, key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, PersistentVolume, PersistentVolumeClaim};
use crate::write::{self, Writer};

/// A kind whose objects are held while they are in use.
pub trait Protected: Cached {
    const IDENTITY: &'static str;
    const FINALIZER: &'static str;

    /// Where its objects are.
    fn cache(caches: &Informers) -> &Arc<Cache<Self>>;

    /// Whether something uses it.
    fn in_use(&self, caches: &Informers) -> bool;
}

impl Protected for PersistentVolumeClaim {
    const IDENTITY: &'static str = "pvc-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pvc-protection";

    fn cache(caches: &Informers) -> &Arc<Cache<Self>> {
        &caches.claims
    }

    // A pod without a node is not started with a claim that is being deleted.
    fn in_use(&self, caches: &Informers) -> bool {
        let pods = caches.pods.by(&format!("claim:{}", key_of(self)));
        pods.iter().any(|p| p.node().is_some() && !p.is_finished())
    }
}

impl Protected for PersistentVolume {
    const IDENTITY: &'static str = "pv-protection-controller";
    const FINALIZER: &'static str = "kubernetes.io/pv-protection";

    fn cache(caches: &Informers) -> &Arc<Cache<Self>> {
        &caches.volumes
    }

    fn in_use(&self, _caches: &Informers) -> bool {
        self.status.phase.as_deref() == Some("Bound")
    }
}

/// Holds claims while a pod uses them, or volumes while they are bound.
pub struct Protection<K> {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
    kind: PhantomData<fn() -> K>,
}

impl<K: Protected> Protection<K> {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let (queue, kind) = (WorkQueue::new(), PhantomData);
        let this = Arc::new(Self { caches: caches.clone(), writer, queue, kind });
        let own = this.clone();
        K::cache(&caches).on_change(move |_, new| {
            new.into_iter().for_each(|one| own.queue.add(key_of(one.as_ref())));
        });
        let own = this.clone();
        // A pod that ends lets go of its claims; a key that is none of this kind's is nobody's.
        caches.pods.on_change(move |old, new| {
            let over = new.is_none_or(|p| p.is_finished());
            let Some(pod) = new.or(old).filter(|_| over) else { return };
            pod.claims().iter().for_each(|claim| own.queue.add(key(pod.namespace(), claim)));
        });
        this
    }
}

/// What is to be done with a finalizer: it stands while its object is in use or not being deleted.
fn change(deleting: bool, held: bool, used: bool) -> Option<&'static str> {
    match (deleting, held, used) {
        (false, false, _) => Some("finalizers"),
        (true, true, false) => Some("$deleteFromPrimitiveList/finalizers"),
        _ => None,
    }
}

#[async_trait]
impl<K: Protected> Reconciler for Protection<K> {
    fn name(&self) -> &'static str {
        K::IDENTITY
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(object) = K::cache(&self.caches).get(key) else { return Ok(None) };
        let held = object.meta().finalizers.iter().flatten().any(|f| f == K::FINALIZER);
        let used = object.in_use(&self.caches);
        let Some(field) = change(object.is_terminating(), held, used) else { return Ok(None) };
        let body = json!({ "metadata": { "uid": object.uid(), field: [K::FINALIZER] } });
        let path = write::path::<K>(object.namespace(), object.name());
        match self.writer.strategic(&path, &body).await {
            Err(error) if !write::is_not_found(&error) => Err(error.into()),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::change;

    #[test]
    fn what_is_in_use_is_held() {
        assert_eq!(change(false, false, false), Some("finalizers"), "from the start");
        assert_eq!(change(true, true, true), None, "held while used");
        assert_eq!(change(true, true, false), Some("$deleteFromPrimitiveList/finalizers"));
        assert_eq!(change(true, false, false), None, "one that goes is not held anew");
    }
}
