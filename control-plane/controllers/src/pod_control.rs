//! Pods on behalf of an owner: made, deleted, adopted and released, with Events and expectations. What the controllers of
//! ReplicaSets, Jobs, StatefulSets and DaemonSets share.

use std::sync::Arc;

use coracle_api::labels::Selector;
use kube::Resource;
use serde_json::{Value, json};

use crate::cache::{Cache, Cached, Key, key, key_of};
use crate::events::Recorder;
use crate::expectations::Expectations;
use crate::informers::Informers;
use crate::ownership::{self, Claim, claim};
use crate::queue::WorkQueue;
use crate::view::{Meta, Pod};
use crate::write::{self, Delete, Writer};

/// A kind whose objects own pods through a selector.
pub trait Owner: Cached {
    /// Where its objects are.
    fn cache(caches: &Informers) -> &Arc<Cache<Self>>;

    /// Its label selector, as JSON.
    fn selector(&self) -> &Value;

    /// Whether an orphan that the selector matches could be its own.
    fn may_adopt(&self, _orphan: &Pod) -> bool {
        true
    }
}

macro_rules! owners {
    ($($kind:ident: $cache:ident),*) => {$(
        impl Owner for crate::view::$kind {
            fn cache(caches: &Informers) -> &Arc<Cache<Self>> {
                &caches.$cache
            }
            fn selector(&self) -> &Value {
                &self.spec.selector
            }
        }
    )*};
}

owners!(ReplicaSet: replica_sets, ReplicationController: replication_controllers, DaemonSet: daemon_sets, Job: jobs);

/// Makes and deletes pods of the owners of one kind, and queues an owner when it or its pods changed.
pub struct PodControl {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    kind: String,
    /// Keys of owners.
    pub queue: WorkQueue,
    /// What was done and is not seen yet, by owner.
    pub expectations: Expectations,
}

/// A write that the API refused, and the reason of the Event that said so.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    pub reason: &'static str,
    #[source]
    pub error: kube::Error,
}

/// A pod to delete: its name and uid.
pub type Victim = (String, String);

/// Name and uid of a pod.
pub fn victim(pod: &Pod) -> Victim {
    (pod.name().to_string(), pod.uid().to_string())
}

/// The pod that a template makes; `meta` names it.
pub fn pod_of<O: Resource<DynamicType = ()>>(owner: &O, template: &Value, meta: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": meta,
        "spec": template.get("spec").cloned().unwrap_or_else(|| json!({})),
    });
    pod["metadata"]["namespace"] = owner.namespace().into();
    pod["metadata"]["ownerReferences"] = json!([ownership::controller_reference(owner)]);
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.pointer(&format!("/metadata/{field}")) {
            pod["metadata"][field] = value.clone();
        }
    }
    pod
}

impl PodControl {
    /// For owners of kind `O`; registers the handlers that fill the queue.
    pub fn new<O: Owner>(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let kind = O::kind(&()).into_owned();
        let (queue, expectations) = (WorkQueue::new(), Expectations::default());
        let this = Arc::new(Self { caches: caches.clone(), writer, events, kind, queue, expectations });
        let own = this.clone();
        O::cache(&caches).on_change(move |old, new| {
            if let (Some(old), None) = (old, new) {
                own.expectations.forget(&key_of(old.as_ref()));
            }
            if let Some(owner) = new.or(old) {
                own.queue.add(key_of(owner.as_ref()));
            }
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            let Some(orphan) = own.seen(old, new) else { return };
            for owner in O::cache(&own.caches).by(&format!("namespace:{}", orphan.namespace())) {
                let selector = Selector::from_label_selector(owner.selector());
                let matches = selector.is_ok_and(|s| ownership::matches(&s, orphan.as_ref()));
                if matches && owner.may_adopt(orphan) {
                    own.queue.add(key_of(owner.as_ref()));
                }
            }
        });
        this
    }

    /// The shared caches.
    pub fn caches(&self) -> &Arc<Informers> {
        &self.caches
    }

    /// The writer of this identity.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }

    /// The recorder of this identity.
    pub fn events(&self) -> &Recorder {
        &self.events
    }

    fn owner(&self, pod: &Pod) -> Option<Key> {
        let owner = pod.controller().filter(|o| o.kind == self.kind)?;
        Some(key(pod.namespace(), &owner.name))
    }

    // A pod changed: takes note of it and wakes its owner. Returns a pod without an owner that a selector may match.
    fn seen<'a>(&self, old: Option<&'a Arc<Pod>>, new: Option<&'a Arc<Pod>>) -> Option<&'a Arc<Pod>> {
        if let Some(pod) = old
            && let Some(owner) = self.owner(pod)
        {
            // A deletion counts as seen once the pod is marked: it no longer counts as active.
            if new.is_none_or(|n| n.is_terminating() || n.uid() != pod.uid()) {
                self.expectations.deleted(&owner, pod.uid());
            }
            self.queue.add(owner);
        }
        let pod = new?;
        let Some(owner) = self.owner(pod) else {
            let labelled = pod.metadata.labels.as_ref().is_some_and(|l| !l.is_empty());
            return Some(pod).filter(|p| labelled && p.controller().is_none());
        };
        if old.is_none_or(|o| o.uid() != pod.uid()) {
            self.expectations.created(&owner, 1);
        }
        if pod.is_terminating() {
            self.expectations.deleted(&owner, pod.uid());
        }
        self.queue.add(owner);
        None
    }

    /// The pods of an owner: those it has and those it adopts now. What no longer matches is released.
    pub async fn claimed<O: Resource<DynamicType = ()>>(
        &self,
        owner: &O,
        selector: &Selector,
    ) -> Result<Vec<Arc<Pod>>, Failure> {
        let mut own = Vec::new();
        let mut candidates = self.caches.pods.by(&format!("owner:{}", owner.uid()));
        candidates.extend(self.caches.pods.by(&format!("orphan:{}", owner.namespace())));
        for pod in candidates {
            if pod.is_finished() && pod.controller().is_none() {
                continue;
            }
            match claim(owner, selector, pod.as_ref()) {
                Claim::Keep => own.push(pod),
                Claim::Adopt => {
                    self.adopt(owner, pod.name(), pod.uid()).await?;
                    own.push(pod);
                }
                Claim::Release => self.release(owner, pod.name()).await?,
                Claim::Ignore => {}
            }
        }
        Ok(own)
    }

    // Becomes the controller of a pod.
    async fn adopt<O: Resource<DynamicType = ()>>(
        &self,
        owner: &O,
        name: &str,
        uid: &str,
    ) -> Result<(), Failure> {
        let path = write::path::<Pod>(owner.namespace(), name);
        quiet(self.writer.strategic(&path, &ownership::adoption(owner, uid)).await.map(drop))
    }

    // Stops being the controller of a pod.
    async fn release<O: Resource>(&self, owner: &O, name: &str) -> Result<(), Failure> {
        let Some(pod) = self.caches.pods.get(&key(owner.namespace(), name)) else { return Ok(()) };
        let path = write::path::<Pod>(owner.namespace(), name);
        quiet(self.writer.merge(&path, &ownership::release(owner, pod.as_ref())).await.map(drop))
    }

    /// Creates pods in rounds of 1, 2, 4, ... so that a quota or a broken template is met by one call, not by five hundred.
    pub async fn create<O: Cached>(
        &self,
        owner_key: &Key,
        owner: &O,
        bodies: Vec<Value>,
    ) -> Result<(), Failure> {
        self.expectations.expect(owner_key, bodies.len(), []);
        let path = write::path::<Pod>(owner.namespace(), "");
        let (mut rest, mut round) = (bodies.as_slice(), 1);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(round.min(rest.len()));
            rest = later;
            round *= 2;
            let answers = futures::future::join_all(now.iter().map(|b| self.writer.create(&path, b))).await;
            let mut failure = None;
            for answer in answers {
                match answer {
                    Ok(pod) => {
                        let words = format!("Created pod: {}", pod.metadata.name);
                        self.events.normal(owner, "SuccessfulCreate", words);
                    }
                    Err(error) => {
                        self.expectations.created(owner_key, 1);
                        failure = Some(error);
                    }
                }
            }
            let Some(error) = failure else { continue };
            self.expectations.created(owner_key, rest.len());
            if write::is_namespace_terminating(&error) {
                return Ok(());
            }
            let words = format!("Error creating: {}", write::words(&error));
            self.events.warning(owner, "FailedCreate", words);
            return Err(Failure { reason: "FailedCreate", error });
        }
        Ok(())
    }

    /// Deletes pods.
    pub async fn delete<O: Cached>(
        &self,
        owner_key: &Key,
        owner: &O,
        pods: Vec<Victim>,
    ) -> Result<(), Failure> {
        self.expectations.expect(owner_key, 0, pods.iter().map(|(_, uid)| uid.clone()));
        let deletions = pods.iter().map(|(name, uid)| async move {
            let path = write::path::<Pod>(owner.namespace(), name);
            let answer = self.writer.delete(&path, Delete { uid: Some(uid), ..Delete::default() }).await;
            (name, uid, answer)
        });
        let mut failure = Ok(());
        for (name, uid, answer) in futures::future::join_all(deletions).await {
            match answer {
                Ok(()) => {
                    self.events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
                    // It may have been gone before; then no event will come.
                    let there = self.caches.pods.get(&key(owner.namespace(), name));
                    if there.is_none_or(|p| p.uid() != uid) {
                        self.expectations.deleted(owner_key, uid);
                    }
                }
                Err(error) => {
                    self.expectations.deleted(owner_key, uid);
                    let words = format!("Error deleting: {}", write::words(&error));
                    self.events.warning(owner, "FailedDelete", words);
                    failure = Err(Failure { reason: "FailedDelete", error });
                }
            }
        }
        failure
    }
}

// A pod that changed or went away meanwhile comes back by its event.
fn quiet(answer: write::Result<()>) -> Result<(), Failure> {
    match answer {
        Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => {
            Err(Failure { reason: "FailedAdopt", error })
        }
        _ => Ok(()),
    }
}
