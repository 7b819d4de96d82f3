//! Binds claims and volumes, and carries out what becomes of released ones.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::plan::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, ClaimStep, SELECTED_NODE, VolumeStep, claim_step, granted, kept_for,
    volume_step,
};
use super::provision::{self, DATA_FINALIZER};
use crate::cache::{Key, key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Node, PersistentVolume, PersistentVolumeClaim, condition};
use crate::write::{self, Delete, Writer};

const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";

/// Binds claims (`namespace/name`) and volumes (`name`): both kinds of keys are in one queue, so that no two
/// bindings are made at a time.
pub struct VolumeBinder {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
}

/// The reference to a claim in a volume.
pub fn reference(claim: &PersistentVolumeClaim) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "namespace": claim.namespace(), "name": claim.name(), "uid": claim.uid(),
    })
}

impl VolumeBinder {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, events, queue: WorkQueue::new() });
        let own = this.clone();
        caches.claims.on_change(move |old, new| {
            for claim in old.into_iter().chain(new) {
                own.queue.add(key_of(claim.as_ref()));
                claim.volume().into_iter().for_each(|volume| own.queue.add(volume));
                if new.is_none() {
                    let kept = own.caches.volumes.by(&format!("claim:{}", key_of(claim.as_ref())));
                    kept.iter().for_each(|v| own.queue.add(v.name()));
                }
            }
        });
        let own = this.clone();
        caches.volumes.on_change(move |old, new| {
            let Some(volume) = new.or(old) else { return };
            own.queue.add(volume.name());
            match &volume.spec.claim_ref {
                Some(claim) => own.queue.add(key(
                    claim.namespace.as_deref().unwrap_or_default(),
                    claim.name.as_deref().unwrap_or_default(),
                )),
                None => own.wake_waiting(),
            }
        });
        let own = this.clone();
        caches.storage_classes.on_change(move |_, _| own.wake_waiting());
        let own = this.clone();
        caches.nodes.on_change(move |old, new| {
            // Volumes of a node that is gone are gone too.
            if new.is_none() && old.is_some() {
                own.caches.volumes.all().iter().for_each(|v| own.queue.add(v.name()));
            }
        });
        this
    }

    fn wake_waiting(&self) {
        for claim in self.caches.claims.all().iter().filter(|c| c.volume().is_none()) {
            self.queue.add(key_of(claim.as_ref()));
        }
    }

    async fn claim(&self, claim: &PersistentVolumeClaim) -> anyhow::Result<Option<Duration>> {
        if claim.is_terminating() && claim.volume().is_none() {
            return Ok(None);
        }
        let class = claim.spec.storage_class_name.as_deref().and_then(|c| self.caches.storage_classes.get(c));
        match claim_step(claim, &self.caches.volumes.all(), class.as_deref()) {
            ClaimStep::Bind { volume, chosen } => self.bind(claim, &volume, chosen).await?,
            ClaimStep::Lost(reason, words) => {
                if claim.status.phase.as_deref() != Some("Lost") {
                    self.claim_status(claim, &json!({ "phase": "Lost" })).await?;
                    self.events.warning(claim, reason, words);
                }
            }
            ClaimStep::Provision { node } => {
                self.pending(claim).await?;
                return self.provision(claim, node.as_deref()).await;
            }
            ClaimStep::External(provisioner) => {
                self.pending(claim).await?;
                if claim.annotation(PROVISIONER) != Some(&*provisioner) {
                    let body = json!({ "metadata": { "uid": claim.uid(), "annotations": { PROVISIONER: provisioner } } });
                    let path = write::path::<PersistentVolumeClaim>(claim.namespace(), claim.name());
                    self.writer.merge(&path, &body).await?;
                }
                let words = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the system administrator."
                );
                self.events.normal(claim, "ExternalProvisioning", words);
            }
            ClaimStep::Wait(reason, words) => {
                self.pending(claim).await?;
                self.events.normal(claim, reason, words);
            }
            ClaimStep::Pending => self.pending(claim).await?,
        }
        Ok(None)
    }

    async fn pending(&self, claim: &PersistentVolumeClaim) -> write::Result<()> {
        match claim.status.phase.as_deref() {
            Some("Pending") => Ok(()),
            _ => self.claim_status(claim, &json!({ "phase": "Pending" })).await,
        }
    }

    async fn claim_status(&self, claim: &PersistentVolumeClaim, status: &Value) -> write::Result<()> {
        let path =
            format!("{}/status", write::path::<PersistentVolumeClaim>(claim.namespace(), claim.name()));
        let body = json!({ "metadata": { "uid": claim.uid() }, "status": status });
        self.writer.merge(&path, &body).await.map(drop)
    }

    // First the volume says whose it is, then the claim: a claim never names a volume that is free for others.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        chosen: bool,
    ) -> anyhow::Result<()> {
        let named = volume.spec.claim_ref.as_ref().and_then(|r| r.uid.as_deref()).unwrap_or_default();
        if named != claim.uid() {
            let mut meta =
                json!({ "uid": volume.uid(), "resourceVersion": volume.metadata.resource_version });
            if !kept_for(volume, claim) {
                meta["annotations"] = json!({ BOUND_BY_CONTROLLER: "yes" });
            }
            let body = json!({ "metadata": meta, "spec": { "claimRef": reference(claim) } });
            self.writer.merge(&write::path::<PersistentVolume>("", volume.name()), &body).await?;
        }
        if volume.status.phase.as_deref() != Some("Bound") {
            self.phase(volume, "Bound", None).await?;
        }
        if claim.volume() != Some(volume.name()) || claim.annotation(BIND_COMPLETED).is_none() {
            let mut annotations = json!({ BIND_COMPLETED: "yes" });
            if chosen {
                annotations[BOUND_BY_CONTROLLER] = "yes".into();
            }
            let body = json!({
                "metadata": { "uid": claim.uid(), "resourceVersion": claim.metadata.resource_version, "annotations": annotations },
                "spec": { "volumeName": volume.name() },
            });
            let path = write::path::<PersistentVolumeClaim>(claim.namespace(), claim.name());
            self.writer.merge(&path, &body).await?;
        }
        let (modes, capacity) = granted(volume);
        // What a bound claim says of its size later is for those to say who resize it.
        if claim.status.phase.as_deref() != Some("Bound") || claim.status.capacity.is_empty() {
            let status = json!({ "phase": "Bound", "accessModes": modes, "capacity": capacity });
            self.claim_status(claim, &status).await?;
        }
        Ok(())
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        node: Option<&str>,
    ) -> anyhow::Result<Option<Duration>> {
        let Some(class) =
            claim.spec.storage_class_name.as_deref().and_then(|c| self.caches.storage_classes.get(c))
        else {
            return Ok(None);
        };
        let node = match node {
            Some(name) => self.caches.nodes.get(name),
            None => self
                .caches
                .nodes
                .all()
                .into_iter()
                .filter(|n| can_have(n))
                .min_by_key(|n| n.name().to_string()),
        };
        let volume = match &node {
            Some(node) => provision::volume(claim, &class, node),
            None => Err("no node can have the volume".to_string()),
        };
        let volume = match volume {
            Ok(volume) => volume,
            Err(why) => {
                let words =
                    format!("failed to provision volume with StorageClass \"{}\": {why}", class.name());
                self.events.warning(claim, "ProvisioningFailed", words);
                self.reschedule(claim).await?;
                return Ok(Some(Duration::from_secs(10)));
            }
        };
        match self.writer.create(&write::path::<PersistentVolume>("", ""), &volume).await {
            Ok(made) => {
                let words = format!("Successfully provisioned volume {}", made.metadata.name);
                self.events.normal(claim, "ProvisioningSucceeded", words);
                Ok(None)
            }
            // The cache has not shown it yet: its event comes.
            Err(error) if write::is_already_exists(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    // The scheduler chooses another node when this one cannot have the volume.
    async fn reschedule(&self, claim: &PersistentVolumeClaim) -> write::Result<()> {
        if claim.annotation(SELECTED_NODE).is_none() {
            return Ok(());
        }
        let path = write::path::<PersistentVolumeClaim>(claim.namespace(), claim.name());
        let body = json!({ "metadata": { "uid": claim.uid(), "annotations": { SELECTED_NODE: null } } });
        self.writer.merge(&path, &body).await.map(drop)
    }

    async fn phase(&self, volume: &PersistentVolume, phase: &str, words: Option<&str>) -> write::Result<()> {
        let path = format!("{}/status", write::path::<PersistentVolume>("", volume.name()));
        let status = json!({ "phase": phase, "message": words });
        let body = json!({ "metadata": { "uid": volume.uid() }, "status": status });
        match self.writer.merge(&path, &body).await {
            Err(error) if !write::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn volume(&self, volume: &PersistentVolume) -> anyhow::Result<()> {
        if volume.is_terminating() {
            self.forget_data(volume).await?;
        }
        let claim = volume.spec.claim_ref.as_ref().and_then(|r| {
            self.caches.claims.get(&key(r.namespace.as_deref().unwrap_or_default(), r.name.as_deref()?))
        });
        let phase = volume.status.phase.as_deref();
        match volume_step(volume, claim.as_deref()) {
            VolumeStep::Phase(wanted) if phase == Some(wanted) => {}
            VolumeStep::Phase(wanted) => self.phase(volume, wanted, None).await?,
            VolumeStep::Failed(words) => {
                if phase != Some("Failed") {
                    self.phase(volume, "Failed", Some(&words)).await?;
                    self.events.warning(volume, "VolumeFailedDelete", words);
                }
            }
            VolumeStep::Delete => {
                if phase != Some("Released") {
                    self.phase(volume, "Released", None).await?;
                }
                if volume.is_terminating() {
                    return Ok(());
                }
                let path = write::path::<PersistentVolume>("", volume.name());
                self.writer.delete(&path, Delete { uid: Some(volume.uid()), ..Delete::default() }).await?;
            }
        }
        Ok(())
    }

    // The data of a node that is gone is gone: nobody is left to delete it.
    async fn forget_data(&self, volume: &PersistentVolume) -> write::Result<()> {
        let held = volume.metadata.finalizers.iter().flatten().any(|f| f == DATA_FINALIZER);
        let affinity = volume.spec.node_affinity.as_ref().and_then(|a| a.required.as_ref());
        let there = |n: &Arc<Node>| {
            let labels = n.metadata.labels.clone().unwrap_or_default();
            affinity.is_none_or(|a| crate::placement::matches(a, &labels, n.name()))
        };
        if !held || self.caches.nodes.all().iter().any(there) {
            return Ok(());
        }
        let body = json!({ "metadata": { "uid": volume.uid(), "$deleteFromPrimitiveList/finalizers": [DATA_FINALIZER] } });
        self.writer.strategic(&write::path::<PersistentVolume>("", volume.name()), &body).await.map(drop)
    }
}

fn can_have(node: &Node) -> bool {
    let ready = condition(&node.status.conditions, "Ready").is_some_and(|c| c.status == "True");
    ready && !node.spec.unschedulable && node.annotation(provision::VOLUMES_DIR).is_some()
}

#[async_trait]
impl Reconciler for VolumeBinder {
    fn name(&self) -> &'static str {
        "persistent-volume-binder"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    // Two claims must not choose the same volume.
    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        if key.contains('/') {
            match self.caches.claims.get(key) {
                Some(claim) => self.claim(&claim).await,
                None => Ok(None),
            }
        } else {
            if let Some(volume) = self.caches.volumes.get(key) {
                self.volume(&volume).await?;
            }
            Ok(None)
        }
    }
}
