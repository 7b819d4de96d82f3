//! Carries out the plan of a ReplicaSet.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Action, State, next_available, plan, status};
use crate::cache::{Key, key, key_of};
use crate::events::Recorder;
use crate::expectations::Expectations;
use crate::informers::Informers;
use crate::ownership;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Pod, ReplicaSet};
use crate::write::{self, Delete, Writer};

/// Keeps the wanted number of pods of each ReplicaSet.
pub struct ReplicaSetController {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
    expectations: Expectations,
}

impl ReplicaSetController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let this = Arc::new(Self {
            caches: caches.clone(),
            writer,
            events,
            queue: WorkQueue::new(),
            expectations: Expectations::default(),
        });
        let own = this.clone();
        caches.replica_sets.on_change(move |old, new| {
            if let (Some(old), None) = (old, new) {
                own.expectations.forget(&key_of(old.as_ref()));
            }
            if let Some(rs) = new.or(old) {
                own.queue.add(key_of(rs.as_ref()));
            }
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| own.pod_changed(old, new));
        this
    }

    fn pod_changed(&self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let owner = |pod: &Arc<Pod>| {
            let owner = pod.controller().filter(|o| o.kind == "ReplicaSet")?;
            Some(key(pod.namespace(), &owner.name))
        };
        if let Some(pod) = old
            && let Some(owner) = owner(pod)
        {
            // A deletion counts as seen once the pod is marked: it no longer counts as active.
            if new.is_none_or(|n| n.is_terminating() || n.uid() != pod.uid()) {
                self.expectations.deleted(&owner, pod.uid());
            }
            self.queue.add(owner);
        }
        if let Some(pod) = new {
            match owner(pod) {
                Some(owner) => {
                    if old.is_none_or(|o| o.uid() != pod.uid()) {
                        self.expectations.created(&owner, 1);
                    }
                    if pod.is_terminating() {
                        self.expectations.deleted(&owner, pod.uid());
                    }
                    self.queue.add(owner);
                }
                None if pod.controller().is_none() => self.wake_adopters(pod),
                None => {}
            }
        }
    }

    fn wake_adopters(&self, pod: &Pod) {
        if pod.metadata.labels.as_ref().is_none_or(|l| l.is_empty()) {
            return;
        }
        for rs in self.caches.replica_sets.by(&format!("namespace:{}", pod.namespace())) {
            let selector = Selector::from_label_selector(&rs.spec.selector);
            if selector.is_ok_and(|s| ownership::matches(&s, pod)) {
                self.queue.add(key_of(rs.as_ref()));
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

    async fn act(&self, key: &Key, rs: &ReplicaSet, action: Action) -> Result<(), Failure> {
        let namespace = rs.namespace();
        match action {
            Action::Adopt { name, uid } => {
                let body = ownership::adoption(rs, &uid);
                let path = write::path::<Pod>(namespace, &name);
                quiet(self.writer.strategic(&path, &body).await.map(drop))
            }
            Action::Release { name } => {
                let Some(pod) = self.caches.pods.get(&crate::cache::key(namespace, &name)) else {
                    return Ok(());
                };
                let path = write::path::<Pod>(namespace, &name);
                quiet(self.writer.merge(&path, &ownership::release(rs, pod.as_ref())).await.map(drop))
            }
            Action::Create(count) => self.create(key, rs, count).await,
            Action::Delete(pods) => self.delete(key, rs, pods).await,
        }
    }

    // Creates in rounds of 1, 2, 4, ... so that a quota or a broken template is met by one call, not by five hundred.
    async fn create(&self, key: &Key, rs: &ReplicaSet, count: usize) -> Result<(), Failure> {
        self.expectations.expect(key, count, []);
        let path = write::path::<Pod>(rs.namespace(), "");
        let body = pod_of(rs);
        let (mut left, mut round) = (count, 1);
        while left > 0 {
            let size = round.min(left);
            let answers =
                futures::future::join_all((0..size).map(|_| self.writer.create(&path, &body))).await;
            let mut failure = None;
            for answer in answers {
                match answer {
                    Ok(pod) => {
                        self.events.normal(
                            rs,
                            "SuccessfulCreate",
                            format!("Created pod: {}", pod.metadata.name),
                        );
                    }
                    Err(error) => {
                        self.expectations.created(key, 1);
                        failure = Some(error);
                    }
                }
            }
            left -= size;
            if let Some(error) = failure {
                self.expectations.created(key, left);
                if write::is_namespace_terminating(&error) {
                    return Ok(());
                }
                self.events.warning(rs, "FailedCreate", format!("Error creating: {}", write::words(&error)));
                return Err(Failure { reason: "FailedCreate", error });
            }
            round *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, rs: &ReplicaSet, pods: Vec<(String, String)>) -> Result<(), Failure> {
        self.expectations.expect(key, 0, pods.iter().map(|(_, uid)| uid.clone()));
        let deletions = pods.iter().map(|(name, uid)| async move {
            let path = write::path::<Pod>(rs.namespace(), name);
            let answer = self.writer.delete(&path, Delete { uid: Some(uid), ..Delete::default() }).await;
            (name, uid, answer)
        });
        let mut failure = Ok(());
        for (name, uid, answer) in futures::future::join_all(deletions).await {
            match answer {
                Ok(()) => {
                    self.events.normal(rs, "SuccessfulDelete", format!("Deleted pod: {name}"));
                    // It may have been gone before; then no event will come.
                    if self
                        .caches
                        .pods
                        .get(&crate::cache::key(rs.namespace(), name))
                        .is_none_or(|p| p.uid() != uid)
                    {
                        self.expectations.deleted(key, uid);
                    }
                }
                Err(error) => {
                    self.expectations.deleted(key, uid);
                    self.events.warning(
                        rs,
                        "FailedDelete",
                        format!("Error deleting: {}", write::words(&error)),
                    );
                    failure = Err(Failure { reason: "FailedDelete", error });
                }
            }
        }
        failure
    }

    async fn write_status(&self, rs: &ReplicaSet, new: &super::Status) -> anyhow::Result<()> {
        if *new == rs.status {
            return Ok(());
        }
        let path = format!("{}/status", write::path::<ReplicaSet>(rs.namespace(), rs.name()));
        let body = json!({ "metadata": { "uid": rs.uid(), "resourceVersion": rs.metadata.resource_version }, "status": new });
        match self.writer.merge(&path, &body).await {
            Err(error) if !write::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

struct Failure {
    reason: &'static str,
    error: kube::Error,
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

/// The pod that a ReplicaSet's template makes.
pub fn pod_of(rs: &ReplicaSet) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": format!("{}-", rs.name()),
            "namespace": rs.namespace(),
            "ownerReferences": [ownership::controller_reference(rs)],
        },
        "spec": rs.spec.template.get("spec").cloned().unwrap_or_else(|| json!({})),
    });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = rs.spec.template.pointer(&format!("/metadata/{field}")) {
            pod["metadata"][field] = value.clone();
        }
    }
    pod
}

#[async_trait]
impl Reconciler for ReplicaSetController {
    fn name(&self) -> &'static str {
        "replicaset-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        // Before the cache is read: what is settled now is in what is read next.
        let settled = self.expectations.settled(key);
        let Some(rs) = self.caches.replica_sets.get(key) else { return Ok(None) };
        let selector =
            Selector::from_label_selector(&rs.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        let (pods, related, now) = (self.candidates(&rs), self.related(&rs), Timestamp::now());
        let state = State { rs: &rs, selector: &selector, pods: &pods, related: &related, settled, now };
        let (actions, own) = plan(&state);
        let mut failure = None;
        for action in actions {
            if let Err(failed) = self.act(key, &rs, action).await {
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
