//! Carries out the plan of a CronJob.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::invoke;
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
    /// Calls of handlers that are under way.
    calls: Mutex<HashMap<Key, Vec<JoinHandle<()>>>>,
}

impl CronJobController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let this = Arc::new(Self {
            caches: caches.clone(),
            writer,
            events,
            queue: WorkQueue::new(),
            calls: Mutex::default(),
        });
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

    // Whether a call is under way.
    fn is_calling(&self, key: &Key) -> bool {
        let mut calls = self.calls.lock();
        let Some(mine) = calls.get_mut(key) else { return false };
        mine.retain(|call| !call.is_finished());
        if mine.is_empty() {
            calls.remove(key);
            return false;
        }
        true
    }

    // Calls the handler of a CronJob on a task of its own.
    fn call(&self, key: &Key, cron: &Arc<CronJob>, path: String, at: Timestamp) {
        let (writer, events, cron) = (self.writer.clone(), self.events.clone(), cron.clone());
        let body =
            json!({ "cronJob": cron.name(), "namespace": cron.namespace(), "scheduledTime": api_time(at) });
        if cron.spec.concurrency_policy.as_deref() == Some("Replace") {
            self.calls.lock().remove(key).into_iter().flatten().for_each(|call| call.abort());
        }
        let call = tokio::spawn(async move {
            let answer = tokio::time::timeout(invoke::patience(&cron), writer.post_text(&path, &body)).await;
            let failure = match answer {
                Ok(Ok(_)) => None,
                Ok(Err(error)) => Some(write::words(&error)),
                Err(_) => Some("no answer in time".to_string()),
            };
            if let Some(why) = failure {
                let words = format!("Error calling the handler: {why}");
                return events.warning(cron.as_ref(), "FailedInvoke", words);
            }
            events.normal(cron.as_ref(), "Invoked", "Called the handler");
            let path = format!("{}/status", write::path::<CronJob>(cron.namespace(), cron.name()));
            let status = json!({ "lastSuccessfulTime": api_time(Timestamp::now()) });
            let body = json!({ "metadata": { "uid": cron.uid() }, "status": status });
            if let Err(error) = writer.merge(&path, &body).await {
                tracing::debug!(cron_job = &*key_of(cron.as_ref()), %error, "write when it succeeded");
            }
        });
        self.calls.lock().entry(key.clone()).or_default().push(call);
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
        let mut plan = plan(&cron, &jobs, self.is_calling(key), Timestamp::now());
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
            plan.status.last_schedule_time = Some(Time(at));
            match invoke::target(&cron) {
                None => {
                    if let Some(job) = self.start(&cron, at).await? {
                        plan.status.active.push(reference(&job));
                    }
                }
                Some(target) => {
                    // Noted first: a call that cannot be noted would be made again.
                    self.write_status(&cron, &plan.status).await?;
                    match target {
                        Ok(path) => self.call(key, &cron, path, at),
                        Err(why) => self.events.warning(cron.as_ref(), "FailedInvoke", why),
                    }
                    return Ok(plan.again);
                }
            }
        }
        self.write_status(&cron, &plan.status).await?;
        Ok(plan.again)
    }
}
