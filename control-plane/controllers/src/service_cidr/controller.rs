//! Holds ranges with a finalizer, and says in their status what they are.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::FINALIZER;
use super::plan::{Action, plan};
use crate::cache::{Key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, ServiceCidr};
use crate::write::{self, Writer};

/// How long whoever gives out addresses has to notice that a range goes.
const GRACE: Duration = Duration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// Keeps ranges of Service addresses until nothing needs them.
pub struct ServiceCidrs {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

impl ServiceCidrs {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        // What comes may hold addresses of one that goes.
        caches.service_cidrs.on_change(move |_, new| {
            new.into_iter().for_each(|range| own.queue.add(key_of(range.as_ref())));
            own.wake();
        });
        let own = this.clone();
        caches.ip_addresses.on_change(move |_, new| {
            if new.is_none() {
                own.wake();
            }
        });
        this
    }

    /// Looks again at those that wait for their end.
    fn wake(&self) {
        for range in self.caches.service_cidrs.all().into_iter().filter(|r| r.is_terminating()) {
            self.queue.add(key_of(range.as_ref()));
        }
    }

    async fn say(
        &self,
        range: &ServiceCidr,
        status: &str,
        reason: &str,
        message: &str,
    ) -> anyhow::Result<()> {
        let condition = json!({
            "type": "Ready", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": Time(Timestamp::now()),
        });
        Ok(self.writer.status(range, json!({ "conditions": [condition] })).await?)
    }

    async fn finalizers(&self, range: &ServiceCidr, field: &str) -> anyhow::Result<()> {
        let body = json!({ "metadata": { "uid": range.uid(), field: [FINALIZER] } });
        match self.writer.strategic(&write::path::<ServiceCidr>("", range.name()), &body).await {
            Err(error) if !write::is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Reconciler for ServiceCidrs {
    fn name(&self) -> &'static str {
        "service-cidrs-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(range) = self.caches.service_cidrs.get(key) else { return Ok(None) };
        let (all, addresses) = (self.caches.service_cidrs.all(), self.caches.ip_addresses.all());
        match plan(&range, all.iter().map(AsRef::as_ref), addresses.iter().map(AsRef::as_ref)) {
            Action::Leave => {}
            Action::Hold => self.finalizers(&range, "finalizers").await?,
            Action::Ready => self.say(&range, "True", "", READY).await?,
            Action::Wait => self.say(&range, "False", "Terminating", IN_USE).await?,
            Action::Release => {
                let since = range
                    .metadata
                    .deletion_timestamp
                    .as_ref()
                    .map(|at| Timestamp::now().duration_since(at.0));
                let since = since.and_then(|since| Duration::try_from(since).ok()).unwrap_or_default();
                let left = GRACE.saturating_sub(since);
                if !left.is_zero() {
                    return Ok(Some(left));
                }
                self.finalizers(&range, "$deleteFromPrimitiveList/finalizers").await?;
            }
        }
        Ok(None)
    }
}
