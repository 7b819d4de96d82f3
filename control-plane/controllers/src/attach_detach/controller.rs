//! Makes and deletes VolumeAttachments, and tells nodes what they have.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::MANAGED;
use super::plan::{Action, Held, NodeState, Wanted, plan, unique, uses};
use crate::cache::{Key, key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{AttachedVolume, Meta, Node, PersistentVolume, VolumeAttachment};
use crate::write::{self, Delete, Writer};

/// Attaches and detaches, a node at a time.
pub struct AttachDetach {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
    /// Since when nobody wants an attachment, by its uid.
    unwanted: Mutex<HashMap<String, Instant>>,
}

impl AttachDetach {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let (queue, unwanted) = (WorkQueue::new(), Mutex::default());
        let this = Arc::new(Self { caches: caches.clone(), writer, events, queue, unwanted });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            for pod in old.into_iter().chain(new).filter(|p| !p.spec.volumes.is_empty()) {
                pod.node().into_iter().for_each(|node| own.queue.add(node));
            }
        });
        let own = this.clone();
        caches.attachments.on_change(move |old, new| {
            if let (Some(old), None) = (old, new) {
                own.unwanted.lock().remove(old.uid());
                // Whoever waits for this volume on another node may have it now.
                own.wake_users(old.volume());
            }
            if let Some(one) = new.or(old) {
                own.queue.add(&*one.spec.node_name);
            }
            if let (Some(old), Some(new)) = (old, new) {
                own.tell(old, new);
            }
        });
        let own = this.clone();
        caches.claims.on_change(move |_, new| {
            let pods = new.map(|c| own.caches.pods.by(&format!("claim:{}", key_of(c.as_ref()))));
            pods.iter().flatten().filter_map(|pod| pod.node()).for_each(|node| own.queue.add(node));
        });
        let own = this.clone();
        caches.drivers.on_change(move |_, _| {
            own.caches.nodes.all().iter().for_each(|node| own.queue.add(node.name()));
        });
        let own = this.clone();
        caches.nodes.on_change(move |old, new| {
            let said = |node: &Arc<Node>| {
                (
                    node.status.volumes_in_use.clone(),
                    node.spec.taints.clone(),
                    node.annotation(MANAGED).is_some(),
                )
            };
            if old.map(said) != new.map(said)
                && let Some(node) = new.or(old)
            {
                own.queue.add(node.name());
            }
        });
        this
    }

    fn wake_users(&self, volume: &str) {
        let claim = self.caches.volumes.get(volume).and_then(|v| v.spec.claim_ref.clone());
        let Some(claim) = claim else { return };
        let at = key(&claim.namespace.unwrap_or_default(), &claim.name.unwrap_or_default());
        let pods = self.caches.pods.by(&format!("claim:{at}"));
        pods.iter().filter_map(|pod| pod.node()).for_each(|node| self.queue.add(node));
    }

    // Pods are told when their volume is attached, and why it is not.
    fn tell(&self, old: &VolumeAttachment, new: &VolumeAttachment) {
        let volume = new.volume();
        let users = || {
            self.wanted(&new.spec.node_name).into_iter().filter(|w| w.volume == volume).flat_map(|w| w.pods)
        };
        if new.status.attached && !old.status.attached {
            let words = format!("AttachVolume.Attach succeeded for volume \"{volume}\" ");
            users().for_each(|pod| self.events.normal(pod.as_ref(), "SuccessfulAttachVolume", words.clone()));
        }
        let error = |one: &VolumeAttachment| one.status.attach_error.as_ref().map(|e| e.message.clone());
        if let Some(why) = error(new).filter(|_| error(old) != error(new)) {
            let words = format!("AttachVolume.Attach failed for volume \"{volume}\" : {why}");
            users().for_each(|pod| self.events.warning(pod.as_ref(), "FailedAttachVolume", words.clone()));
        }
    }

    /// Driver and handle of a volume that has to be attached.
    fn attachable(&self, volume: &PersistentVolume) -> Option<(String, String)> {
        let csi = volume.spec.csi.as_ref()?;
        let driver = self.caches.drivers.get(&csi.driver);
        let needed = driver.is_none_or(|driver| driver.spec.attach_required != Some(false));
        needed.then(|| (csi.driver.clone(), csi.volume_handle.clone()))
    }

    /// What the pods of a node use.
    fn wanted(&self, node: &str) -> Vec<Wanted> {
        let mut all: BTreeMap<String, Wanted> = BTreeMap::new();
        for pod in self.caches.pods.by(&format!("node:{node}")).into_iter().filter(|p| uses(p)) {
            for claim in pod.claims() {
                let claim = self.caches.claims.get(&key(pod.namespace(), &claim));
                let volume = claim.and_then(|c| self.caches.volumes.get(c.volume()?));
                let Some(volume) = volume else { continue };
                let Some((driver, handle)) = self.attachable(&volume) else { continue };
                let modes = &volume.spec.access_modes;
                let shared = |mode: &String| matches!(mode.as_str(), "ReadWriteMany" | "ReadOnlyMany");
                let one = all.entry(volume.name().to_owned()).or_insert_with(|| Wanted {
                    volume: volume.name().to_owned(),
                    driver,
                    handle,
                    exclusive: !modes.iter().any(shared),
                    pods: Vec::new(),
                });
                one.pods.push(pod.clone());
            }
        }
        all.into_values().collect()
    }

    fn held(&self, node: &str, wanted: &[Wanted]) -> Vec<Held> {
        let mut unwanted = self.unwanted.lock();
        let held = self.caches.attachments.by(&format!("node:{node}")).into_iter().map(|object| {
            if wanted.iter().any(|w| w.attachment(node) == object.name()) {
                unwanted.remove(object.uid());
            } else {
                unwanted.entry(object.uid().to_owned()).or_insert_with(Instant::now);
            }
            let csi = self.caches.volumes.get(object.volume()).and_then(|v| v.spec.csi.clone());
            Held {
                unique: csi.map(|csi| unique(&csi.driver, &csi.volume_handle)),
                unwanted: unwanted.get(object.uid()).map(|since| since.elapsed()).unwrap_or_default(),
                object,
            }
        });
        held.collect()
    }

    /// Who uses a volume on other nodes that it is attached to, or about to be.
    fn elsewhere(&self, volume: &str, node: &str) -> Option<Vec<String>> {
        let attachments = self.caches.attachments.by(&format!("volume:{volume}"));
        let mut others = attachments.iter().filter(|a| a.spec.node_name != node).peekable();
        others.peek()?;
        let users = others.flat_map(|a| self.wanted(&a.spec.node_name)).filter(|w| w.volume == volume);
        Some(users.flat_map(|w| w.pods).map(|pod| key_of(pod.as_ref()).to_string()).collect())
    }

    // The node's own list of what it has: before something is detached it is taken off.
    async fn report(&self, node: &Node, held: &[Held], leaving: &[&str]) -> write::Result<()> {
        let stays = |h: &&Held| {
            h.object.status.attached && !h.object.is_terminating() && !leaving.contains(&h.object.name())
        };
        let names = held.iter().filter(stays).filter_map(|h| h.unique.clone());
        let mut attached: Vec<AttachedVolume> =
            names.map(|name| AttachedVolume { name, device_path: String::new() }).collect();
        attached.sort();
        let mut before = node.status.volumes_attached.clone();
        before.sort();
        if attached == before {
            return Ok(());
        }
        let list = if attached.is_empty() { Value::Null } else { json!(attached) };
        let body = json!({ "metadata": { "uid": node.uid() }, "status": { "volumesAttached": list } });
        let path = format!("{}/status", write::path::<Node>("", node.name()));
        match self.writer.merge(&path, &body).await {
            Err(error) if !write::is_not_found(&error) => Err(error),
            _ => Ok(()),
        }
    }

    async fn attach(&self, node: &str, name: &str, volume: &str, driver: &str) -> write::Result<()> {
        let body = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": { "name": name },
            "spec": { "attacher": driver, "nodeName": node, "source": { "persistentVolumeName": volume } },
        });
        match self.writer.create(&write::path::<VolumeAttachment>("", ""), &body).await {
            Err(error) if !write::is_already_exists(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn refuse(&self, wanted: &[Wanted], volume: &str, users: &[String]) {
        let words = match users {
            [] => format!(
                "Multi-Attach error for volume \"{volume}\" Volume is already exclusively attached to one node and can't be attached to another"
            ),
            users => format!(
                "Multi-Attach error for volume \"{volume}\" Volume is already used by pod(s) {}",
                users.join(", ")
            ),
        };
        for pod in wanted.iter().filter(|w| w.volume == volume).flat_map(|w| &w.pods) {
            self.events.warning(pod.as_ref(), "FailedAttachVolume", words.clone());
        }
    }

    // The node may have mounted it since its status was last seen here.
    async fn is_mounted(&self, node: &str, unique: Option<&str>) -> write::Result<bool> {
        match self.writer.get::<Node>(&write::path::<Node>("", node)).await {
            Ok(node) => Ok(NodeState::of(Some(&node)).wait(unique, Duration::ZERO) != Some(Duration::ZERO)),
            Err(error) if write::is_not_found(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl Reconciler for AttachDetach {
    fn name(&self) -> &'static str {
        "attachdetach-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, name: &Key) -> anyhow::Result<Option<Duration>> {
        let node = self.caches.nodes.get(name);
        if node.as_ref().is_some_and(|node| node.annotation(MANAGED).is_none()) {
            return Ok(None);
        }
        let wanted = if node.is_some() { self.wanted(name) } else { Vec::new() };
        let held = self.held(name, &wanted);
        let actions = plan(name, &NodeState::of(node.as_deref()), &wanted, &held, |volume| {
            self.elsewhere(volume, name)
        });
        let leaves = |action: &Action| match action {
            Action::Detach { name, .. } => Some(name.clone()),
            _ => None,
        };
        let leaving: Vec<String> = actions.iter().filter_map(leaves).collect();
        if let Some(node) = &node {
            self.report(node, &held, &leaving.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        }
        let mut again: Option<Duration> = None;
        for action in actions {
            match action {
                Action::Attach { name: attachment, volume, driver } => {
                    self.attach(name, &attachment, &volume, &driver).await?;
                }
                Action::Refuse { volume, users } => self.refuse(&wanted, &volume, &users),
                Action::Detach { name: attachment, uid, forced } => {
                    let unique =
                        held.iter().find(|h| h.object.uid() == uid).and_then(|h| h.unique.as_deref());
                    if !forced && self.is_mounted(name, unique).await? {
                        continue;
                    }
                    let path = write::path::<VolumeAttachment>("", &attachment);
                    self.writer.delete(&path, Delete { uid: Some(&uid), ..Delete::default() }).await?;
                    tracing::info!(node = &**name, attachment, forced, "a volume is detached");
                }
                Action::Again(left) => again = Some(again.map_or(left, |a| a.min(left))),
            }
        }
        Ok(again)
    }
}
