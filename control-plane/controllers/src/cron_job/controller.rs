//! Carries out the plan of a CronJob.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::plan::{plan, reference};
use crate::cache::{Key, key, key_of};
use crate::events::{Recorder, api_time};
use crate::informers::Informers;
use crate::ownership::controller_reference;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{CronJob, CronJobStatus, Job, Meta};
use crate::write::{self, Delete, Writer};

/// Makes Jobs on schedule.
pub struct CronJobController {
    caches: Arc<Informers>,
    writer: Writer,
    events: Recorder,
    queue: WorkQueue,
}

impl CronJobController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let this = Arc::new(Self { caches: caches.clone(), writer, events, queue: WorkQueue::new() });
        let own = this.clone();
        caches.cron_jobs.on_change(move |old, new| {
            if let Some(cron) = new.or(old) {
                own.queue.add(key_of(cron.as_ref()));
            }
        });
        let own = this.clone();
        caches.jobs.on_change(move |old, new| {
            for job in old.into_iter().chain(new) {
                if let Some(owner) = job.controller().filter(|o| o.kind == "CronJob") {
                    own.queue.add(key(job.namespace(), &owner.name));
                }
            }
        });
        this
    }

    // Its name says for which time it is, so that no time has two Jobs.
    async fn start(&self, cron: &CronJob, at: Timestamp) -> write::Result<Option<Job>> {
        let name = format!("{}-{}", cron.name(), at.as_second() / 60);
        match self.writer.create(&write::path::<Job>(cron.namespace(), ""), &job_of(cron, &name, at)).await {
            Ok(made) => {
                self.events.normal(cron, "SuccessfulCreate", format!("Created job {name}"));
                let mut job = Job::default();
                job.metadata.namespace = Some(cron.namespace().into());
                job.metadata.name = Some(made.metadata.name);
                job.metadata.uid = Some(made.metadata.uid);
                job.metadata.resource_version = Some(made.metadata.resource_version);
                Ok(Some(job))
            }
            Err(error) if write::is_already_exists(&error) => Ok(None),
            Err(error) => {
                let words = format!("Error creating job: {}", write::words(&error));
                self.events.warning(cron, "FailedCreate", words);
                Err(error)
            }
        }
    }

    async fn write_status(&self, cron: &CronJob, new: &CronJobStatus) -> write::Result<()> {
        if *new == cron.status {
            return Ok(());
        }
        let mut status = json!(new);
        if new.active.is_empty() {
            status["active"] = Value::Null;
        }
        self.writer.status(cron, status).await
    }
}

/// The Job for a time.
fn job_of(cron: &CronJob, name: &str, at: Timestamp) -> Value {
    let template = &cron.spec.job_template;
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {
            "name": name, "namespace": cron.namespace(), "ownerReferences": [controller_reference(cron)],
            "annotations": template.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({})),
        },
        "spec": template.get("spec").cloned().unwrap_or_default(),
    });
    if let Some(labels) = template.pointer("/metadata/labels") {
        job["metadata"]["labels"] = labels.clone();
    }
    job["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"] = api_time(at).into();
    job
}

#[async_trait]
impl Reconciler for CronJobController {
    fn name(&self) -> &'static str {
        "cronjob-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(cron) = self.caches.cron_jobs.get(key) else { return Ok(None) };
        let jobs = self.caches.jobs.by(&format!("owner:{}", cron.uid()));
        let mut plan = plan(&cron, &jobs, Timestamp::now());
        for (warning, reason, words) in plan.said {
            if warning {
                self.events.warning(cron.as_ref(), reason, words);
            } else {
                self.events.normal(cron.as_ref(), reason, words);
            }
        }
        for (name, uid) in &plan.deleted {
            let path = write::path::<Job>(cron.namespace(), name);
            let how = Delete { uid: Some(uid), propagation: Some("Background"), ..Delete::default() };
            self.writer.delete(&path, how).await?;
            self.events.normal(cron.as_ref(), "SuccessfulDelete", format!("Deleted job {name}"));
        }
        if let Some(at) = plan.start {
            if let Some(job) = self.start(&cron, at).await? {
                plan.status.active.push(reference(&job));
            }
            plan.status.last_schedule_time = Some(Time(at));
        }
        self.write_status(&cron, &plan.status).await?;
        Ok(plan.again)
    }
}
