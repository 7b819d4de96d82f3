//! Writes the status of quotas.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::{Api, Client};
use serde_json::json;

use super::plan::{Held, counted, used};
use crate::cache::{Key, key_of};
use crate::discovery::deletable;
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, ResourceQuota};
use crate::write::{self, Writer};

/// A quota that counts objects of other kinds is counted anew this often.
const COUNT_PERIOD: Duration = Duration::from_secs(30);
const PERIOD: Duration = Duration::from_secs(300);

/// Keeps quotas up to date.
pub struct QuotaController {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

impl QuotaController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.quotas.on_change(move |old, new| {
            // What admission charges changes the status; what it was charged for may not be stored yet, so that is no time to count.
            let Some(quota) = new else { return };
            if old.is_none() || quota.status.hard != quota.spec.hard {
                own.queue.add(key_of(quota.as_ref()));
            }
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            // What comes is counted by admission; what ends or goes is counted here.
            let ended = new.is_none_or(|p| p.is_finished());
            if let Some(pod) = old.or(new).filter(|_| ended) {
                own.wake(pod.namespace());
            }
        });
        let own = this.clone();
        caches.services.on_change(move |old, new| {
            if let Some(service) = new.or(old) {
                own.wake(service.namespace());
            }
        });
        let own = this.clone();
        caches.claims.on_change(move |old, new| {
            if let Some(claim) = old.filter(|_| new.is_none()) {
                own.wake(claim.namespace());
            }
        });
        this
    }

    fn wake(&self, namespace: &str) {
        for quota in self.caches.quotas.by(&format!("namespace:{namespace}")) {
            self.queue.add(key_of(quota.as_ref()));
        }
    }

    // Counts the objects of kinds that no cache holds.
    async fn count(&self, quota: &ResourceQuota, held: &mut Held) -> anyhow::Result<bool> {
        let cached = ["pods", "services", "persistentvolumeclaims"];
        let wanted: Vec<&str> =
            quota.spec.hard.keys().filter_map(|n| counted(n)).filter(|k| !cached.contains(k)).collect();
        if wanted.is_empty() {
            return Ok(false);
        }
        let client: &Client = self.writer.client();
        let served = deletable(client).await?;
        for kind in wanted {
            let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
            let Some(served) = served
                .iter()
                .find(|s| s.namespaced && s.resource.plural == plural && s.resource.group == group)
            else {
                continue;
            };
            let api = Api::<PartialObjectMeta<DynamicObject>>::namespaced_with(
                client.clone(),
                quota.namespace(),
                &served.resource,
            );
            let listed = api.list_metadata(&kube::api::ListParams::default()).await?;
            held.counts.insert(kind.to_string(), i64::try_from(listed.items.len()).unwrap_or(i64::MAX));
        }
        Ok(true)
    }
}

#[async_trait]
impl Reconciler for QuotaController {
    fn name(&self) -> &'static str {
        "resourcequota-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(quota) = self.caches.quotas.get(key).filter(|q| !q.is_terminating()) else {
            return Ok(None);
        };
        let index = format!("namespace:{}", quota.namespace());
        let mut held = Held {
            pods: self.caches.pods.by(&index),
            claims: self.caches.claims.by(&index),
            services: self.caches.services.by(&index),
            ..Held::default()
        };
        let counts = self.count(&quota, &mut held).await?;
        let used = used(&quota, &held);
        if quota.status.hard != quota.spec.hard || quota.status.used != used {
            let path = format!("{}/status", write::path::<ResourceQuota>(quota.namespace(), quota.name()));
            let mut status = json!({ "hard": quota.spec.hard, "used": used });
            for (field, there, now) in
                [("hard", &quota.status.hard, &quota.spec.hard), ("used", &quota.status.used, &used)]
            {
                for name in there.keys().filter(|name| !now.contains_key(*name)) {
                    status[field][name] = serde_json::Value::Null;
                }
            }
            // With the version that was seen: admission may have counted something meanwhile.
            let body = json!({
                "metadata": { "uid": quota.uid(), "resourceVersion": quota.metadata.resource_version }, "status": status,
            });
            match self.writer.merge(&path, &body).await {
                Err(error) if !write::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Some(if counts { COUNT_PERIOD } else { PERIOD }))
    }
}
