//! Finished Jobs go when their time to live is over.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::cache::{Key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Job, Meta};
use crate::write::{self, Delete, Writer};

/// Deletes Jobs with `ttlSecondsAfterFinished`.
pub struct TtlAfterFinished {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
}

impl TtlAfterFinished {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, queue: WorkQueue::new() });
        let own = this.clone();
        caches.jobs.on_change(move |_, new| {
            if let Some(job) = new.filter(|j| left(j, Timestamp::now()).is_some()) {
                own.queue.add(key_of(job.as_ref()));
            }
        });
        this
    }
}

/// How long a finished Job stays; None for ever.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let end = job.finished_at()?.as_millisecond() + job.spec.ttl_seconds_after_finished?.saturating_mul(1000);
    if job.is_terminating() {
        return None;
    }
    Some(Duration::from_millis(u64::try_from(end - now.as_millisecond()).unwrap_or(0)))
}

#[async_trait]
impl Reconciler for TtlAfterFinished {
    fn name(&self) -> &'static str {
        "ttl-after-finished-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(job) = self.caches.jobs.get(key) else { return Ok(None) };
        match left(&job, Timestamp::now()) {
            None => Ok(None),
            Some(Duration::ZERO) => {
                // With the version that was seen: whoever prolongs its life meanwhile wins.
                let how = Delete {
                    uid: Some(job.uid()),
                    resource_version: job.metadata.resource_version.as_deref(),
                    propagation: Some("Foreground"),
                    grace: None,
                };
                self.writer.delete(&write::path::<Job>(job.namespace(), job.name()), how).await?;
                Ok(None)
            }
            Some(left) => Ok(Some(left)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_finished_jobs_with_a_ttl_end() {
        let now = Timestamp::from_second(1000).unwrap();
        let job = |ttl: serde_json::Value, end: &str| -> Job {
            let at = crate::events::api_time(Timestamp::from_second(990).unwrap());
            let end = json!([{ "type": end, "status": "True", "lastTransitionTime": at }]);
            serde_json::from_value(json!({ "metadata": {}, "spec": { "ttlSecondsAfterFinished": ttl }, "status": { "conditions": end } })).unwrap()
        };
        assert_eq!(left(&job(json!(5), "Complete"), now), Some(Duration::ZERO));
        assert_eq!(left(&job(json!(15), "Failed"), now), Some(Duration::from_secs(5)));
        assert_eq!(left(&job(json!(null), "Complete"), now), None);
        assert_eq!(left(&job(json!(5), "Suspended"), now), None);
    }
}
