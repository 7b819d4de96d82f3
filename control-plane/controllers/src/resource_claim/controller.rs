//! Carries out the plans of claims and of the pods that use them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};

use super::PROTECTED;
use super::plan::{Step, Upkeep, User, body, of_pod, upkeep};
use crate::cache::{Key, key, key_of};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Pod, ResourceClaim};
use crate::write::{self, Delete, Writer};

/// Makes claims from templates and looks after them.
pub struct ResourceClaims {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    /// `pod:` or `claim:` before the key of an object.
    queue: WorkQueue,
}

impl ResourceClaims {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, events, queue: WorkQueue::new() });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            let Some(pod) = new.or(old).filter(|pod| !pod.spec.resource_claims.is_empty()) else { return };
            own.queue.add(format!("pod:{}", key_of(pod.as_ref())));
            for index in ["user", "owner"] {
                for claim in own.caches.resource_claims.by(&format!("{index}:{}", pod.uid())) {
                    own.queue.add(format!("claim:{}", key_of(claim.as_ref())));
                }
            }
        });
        let own = this.clone();
        caches.resource_claims.on_change(move |old, new| {
            if let Some(claim) = new.or(old) {
                own.queue.add(format!("claim:{}", key_of(claim.as_ref())));
                if let Some(owner) = claim.controller().filter(|owner| owner.kind == "Pod") {
                    own.queue.add(format!("pod:{}/{}", claim.namespace(), owner.name));
                }
            }
        });
        let own = this.clone();
        caches.claim_templates.on_change(move |old, new| {
            let (None, Some(template)) = (old, new) else { return };
            let asks = |pod: &&Arc<Pod>| {
                let mut entries = pod.spec.resource_claims.iter();
                entries.any(|one| one.resource_claim_template_name.as_deref() == Some(template.name()))
            };
            let pods = own.caches.pods.by(&format!("namespace:{}", template.namespace()));
            pods.iter().filter(asks).for_each(|pod| own.queue.add(format!("pod:{}", key_of(pod.as_ref()))));
        });
        this
    }

    async fn pod(&self, pod: &Pod) -> anyhow::Result<()> {
        let made = self.caches.resource_claims.by(&format!("owner:{}", pod.uid()));
        for step in of_pod(pod, &made) {
            match step {
                Step::Make { entry, template } => self.make(pod, &entry, &template).await?,
                Step::Tell(known) => {
                    let list: Vec<Value> = known
                        .iter()
                        .map(|(name, claim)| json!({ "name": name, "resourceClaimName": claim }))
                        .collect();
                    let body = json!({ "metadata": { "uid": pod.uid() }, "status": { "resourceClaimStatuses": list } });
                    let path = format!("{}/status", write::path::<Pod>(pod.namespace(), pod.name()));
                    match self.writer.strategic(&path, &body).await {
                        Err(error) if !write::is_not_found(&error) => return Err(error.into()),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    async fn make(&self, pod: &Pod, entry: &str, template: &str) -> anyhow::Result<()> {
        let path = format!("/apis/resource.k8s.io/v1/namespaces/{}", pod.namespace());
        let failed = |why: String| {
            let words = format!("PodResourceClaim {entry}: resource claim template {template:?}: {why}");
            self.events.warning(pod, "FailedResourceClaimCreation", words);
        };
        let Some(found) = self.caches.claim_templates.get(&key(pod.namespace(), template)) else {
            // It is looked at again when the template comes.
            failed("not found".to_owned());
            return Ok(());
        };
        // Asked of the server itself, so that a cache that lags makes no second one.
        let all: Value = self.writer.get(&format!("{path}/resourceclaims")).await?;
        let items = all.get("items").and_then(Value::as_array).into_iter().flatten();
        let mut items = items.filter_map(|one| serde_json::from_value::<ResourceClaim>(one.clone()).ok());
        let is_it = |claim: &ResourceClaim| {
            claim.controller().is_some_and(|owner| owner.uid == pod.uid())
                && claim.annotation(super::POD_CLAIM) == Some(entry)
                && !claim.is_terminating()
        };
        if items.any(|claim| is_it(&claim)) {
            return Ok(());
        }
        match self.writer.create(&format!("{path}/resourceclaims"), &body(pod, entry, &found.spec)).await {
            Err(error) if write::is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                failed(write::words(&error));
                Err(error.into())
            }
            Ok(_) => Ok(()),
        }
    }

    async fn claim(&self, claim: &ResourceClaim) -> anyhow::Result<()> {
        let namespace = claim.namespace();
        let mut done: Vec<String> = Vec::new();
        let users = claim.status.reserved_for.iter().flatten().filter(|user| user.resource == "pods");
        let owner = claim.controller().filter(|owner| owner.kind == "Pod");
        let named = users.map(|user| (user.name.clone(), user.uid.clone()));
        for (name, uid) in named.chain(owner.map(|owner| (owner.name.clone(), owner.uid.clone()))) {
            if self.is_done(namespace, &name, &uid).await? {
                done.push(uid);
            }
        }
        let user = |uid: &str| if done.iter().any(|one| one == uid) { User::Done } else { User::Needs };
        let plan = upkeep(claim, user, owner.map(|owner| user(&owner.uid)));
        self.carry_out(claim, plan).await.map_err(Into::into)
    }

    // Whether a pod needs its devices no more.
    async fn is_done(&self, namespace: &str, name: &str, uid: &str) -> write::Result<bool> {
        let over = |pod: &Pod| {
            pod.uid() != uid || pod.is_finished() || (pod.is_terminating() && pod.node().is_none())
        };
        if let Some(pod) = self.caches.pods.get(&key(namespace, name)) {
            return Ok(over(&pod));
        }
        match self.writer.get::<Pod>(&write::path::<Pod>(namespace, name)).await {
            Ok(pod) => Ok(over(&pod)),
            Err(error) if write::is_not_found(&error) => Ok(true),
            Err(error) => Err(error),
        }
    }

    async fn carry_out(&self, claim: &ResourceClaim, plan: Upkeep) -> write::Result<()> {
        let path = write::path::<ResourceClaim>(claim.namespace(), claim.name());
        let mut version = claim.metadata.resource_version.clone();
        if plan.users.is_some() || plan.release {
            let mut status = json!({});
            if let Some(users) = &plan.users {
                status["reservedFor"] = if users.is_empty() { Value::Null } else { json!(users) };
            }
            if plan.release {
                status["allocation"] = Value::Null;
            }
            let body =
                json!({ "metadata": { "uid": claim.uid(), "resourceVersion": version }, "status": status });
            match self.writer.merge(&format!("{path}/status"), &body).await {
                Ok(written) => version = Some(written.metadata.resource_version),
                Err(error) if write::is_not_found(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if plan.unprotect {
            let rest: Vec<&String> =
                claim.metadata.finalizers.iter().flatten().filter(|f| *f != PROTECTED).collect();
            let body =
                json!({ "metadata": { "uid": claim.uid(), "resourceVersion": version, "finalizers": rest } });
            match self.writer.merge(&path, &body).await {
                Err(error) if !write::is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
        if plan.delete {
            self.writer.delete(&path, Delete { uid: Some(claim.uid()), ..Delete::default() }).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Reconciler for ResourceClaims {
    fn name(&self) -> &'static str {
        "resource-claim-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some((kind, key)) = key.split_once(':') else { return Ok(None) };
        if kind == "pod" {
            if let Some(pod) = self.caches.pods.get(key) {
                self.pod(&pod).await?;
            }
        } else if let Some(claim) = self.caches.resource_claims.get(key) {
            self.claim(&claim).await?;
        }
        Ok(None)
    }
}
