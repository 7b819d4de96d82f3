//! Generic ephemeral volumes: a claim for each, named after pod and volume, that goes with its pod.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use crate::cache::{Key, key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, PersistentVolumeClaim, Pod};
use crate::write::{self, Writer};

/// Makes the claims of pods.
pub struct EphemeralVolumes {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

impl EphemeralVolumes {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.pods.on_change(move |_, new| {
            let asks = new.filter(|pod| pod.spec.volumes.iter().any(|v| v.ephemeral.is_some()));
            asks.into_iter().for_each(|pod| own.queue.add(key_of(pod.as_ref())));
        });
        this
    }
}

/// Pure: the claims that the volumes of a pod are made from.
fn claims(pod: &Value) -> Vec<Value> {
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).into_iter().flatten();
    let made = volumes.filter_map(|volume| {
        let template = volume.pointer("/ephemeral/volumeClaimTemplate")?;
        let mut metadata = json!({
            "name": format!("{name}-{}", volume.get("name")?.as_str()?),
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.pointer("/metadata/uid"),
                "controller": true, "blockOwnerDeletion": true,
            }],
        });
        for field in ["labels", "annotations"] {
            if let Some(own) = template.pointer(&format!("/metadata/{field}")) {
                metadata[field] = own.clone();
            }
        }
        let spec = template.get("spec")?;
        Some(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}))
    });
    made.collect()
}

#[async_trait]
impl Reconciler for EphemeralVolumes {
    fn name(&self) -> &'static str {
        "ephemeral-volume-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, pod: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(known) = self.caches.pods.get(pod) else { return Ok(None) };
        if known.is_terminating() || known.is_finished() {
            return Ok(None);
        }
        let namespace = known.namespace();
        let missing = known.claims().iter().any(|c| self.caches.claims.get(&key(namespace, c)).is_none());
        if !missing {
            return Ok(None);
        }
        // The cache keeps no templates.
        let whole = match self.writer.get::<Value>(&write::path::<Pod>(namespace, known.name())).await {
            Err(error) if write::is_not_found(&error) => return Ok(None),
            whole => whole?,
        };
        let collection = write::path::<PersistentVolumeClaim>(namespace, "");
        for claim in claims(&whole) {
            match self.writer.create(&collection, &claim).await {
                // One that is not of this pod is told by scheduler and node.
                Err(error) if !write::is_already_exists(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_named_after_pod_and_volume() {
        let pod = json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"volumes": [
                {"name": "plain", "emptyDir": {}},
                {"name": "data", "ephemeral": {"volumeClaimTemplate": {
                    "metadata": {"labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}}},
            ]},
        });
        let made = claims(&pod);
        assert_eq!(made.len(), 1);
        assert_eq!(made[0]["metadata"]["name"], "p-data");
        assert_eq!(made[0]["metadata"]["labels"]["a"], "b");
        assert_eq!(made[0]["metadata"]["ownerReferences"][0]["uid"], "u");
        assert_eq!(made[0]["spec"]["accessModes"][0], "ReadWriteOnce");
    }
}
