//! Carries out the plan of a Job.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::back_off::BackOff;
use super::count::{INDEX_FAILURES, INDEX_IGNORED};
use super::plan::{Plan, Start, State, plan};
use super::{JOB_NAME, TRACKING};
use crate::cache::{Key, key_of, split};
use crate::events::Recorder;
use crate::informers::Informers;
use crate::pod_control::{PodControl, Victim, pod_of};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{COMPLETION_INDEX, Job, JobStatus, Meta, Pod};
use crate::write::{self, Delete, Writer};

/// Runs Jobs.
pub struct JobController {
    pods: Arc<PodControl>,
    /// The version of each Job that was written last: an older one from the cache is not planned on.
    written: Mutex<HashMap<Key, u64>>,
    /// Failures of each Job, those of pods that are gone included.
    failures: Mutex<HashMap<Key, BackOff>>,
}

impl JobController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let pods = PodControl::new::<Job>(caches.clone(), writer, events);
        let this = Arc::new(Self { pods, written: Mutex::default(), failures: Mutex::default() });
        let own = this.clone();
        caches.jobs.on_change(move |old, new| {
            if let (Some(old), None) = (old, new) {
                own.written.lock().remove(&key_of(old.as_ref()));
                own.failures.lock().remove(&key_of(old.as_ref()));
            }
        });
        this
    }

    async fn release(&self, namespace: &str, pods: &[Victim]) -> write::Result<()> {
        for (name, uid) in pods {
            let body =
                json!({ "metadata": { "uid": uid, "$deleteFromPrimitiveList/finalizers": [TRACKING] } });
            match self.pods.writer().strategic(&write::path::<Pod>(namespace, name), &body).await {
                Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        Ok(())
    }

    // Pods of a Job that is gone are held by nobody.
    async fn clean_up(&self, key: &Key) -> write::Result<()> {
        let (namespace, name) = split(key);
        let pods = self.pods.caches().pods.by(&format!("namespace:{namespace}"));
        let ours = pods.iter().filter(|p| match p.controller() {
            Some(owner) => owner.kind == "Job" && owner.name == name,
            None => p.label(JOB_NAME) == Some(name),
        });
        let held: Vec<Victim> =
            ours.filter(|p| p.has_finalizer(TRACKING)).map(|p| crate::pod_control::victim(p)).collect();
        self.release(namespace, &held).await
    }

    async fn write_status(&self, key: &Key, job: &Job, new: &JobStatus) -> write::Result<()> {
        if *new == job.status {
            return Ok(());
        }
        let path = format!("{}/status", write::path::<Job>(job.namespace(), job.name()));
        let body = json!({
            "metadata": { "uid": job.uid(), "resourceVersion": job.metadata.resource_version },
            "status": shown(new),
        });
        let written = self.pods.writer().merge(&path, &body).await?;
        if let Ok(version) = written.metadata.resource_version.parse() {
            self.written.lock().insert(key.clone(), version);
        }
        self.tell(job, new);
        Ok(())
    }

    fn tell(&self, job: &Job, new: &JobStatus) {
        for condition in &new.conditions {
            let before = crate::view::condition(&job.status.conditions, &condition.type_);
            if before.is_some_and(|b| b.status == condition.status) {
                continue;
            }
            let events = self.pods.events();
            match (condition.type_.as_str(), condition.status.as_str()) {
                ("Complete", _) => events.normal(job, "Completed", "Job completed"),
                ("FailureTarget", _) => {
                    let reason = match condition.reason.as_str() {
                        "DeadlineExceeded" => "DeadlineExceeded",
                        "PodFailurePolicy" => "PodFailurePolicy",
                        "MaxFailedIndexesExceeded" => "MaxFailedIndexesExceeded",
                        "FailedIndexes" => "FailedIndexes",
                        _ => "BackoffLimitExceeded",
                    };
                    events.warning(job, reason, condition.message.clone());
                }
                ("Suspended", "True") => events.normal(job, "Suspended", "Job suspended"),
                ("Suspended", _) => events.normal(job, "Resumed", "Job resumed"),
                _ => {}
            }
        }
    }

    async fn act(&self, key: &Key, job: &Job, plan: Plan) -> anyhow::Result<()> {
        match self.write_status(key, job, &plan.status).await {
            Err(error) if write::is_not_found(&error) => return Ok(()),
            other => other?,
        }
        self.failures.lock().insert(key.clone(), plan.back_off);
        let namespace = job.namespace();
        self.release(namespace, &plan.counted).await?;
        self.release(namespace, &plan.dropped).await?;
        for (name, uid) in plan.dropped.iter().chain(&plan.deleted) {
            let path = write::path::<Pod>(namespace, name);
            self.pods.writer().delete(&path, Delete { uid: Some(uid), ..Delete::default() }).await?;
            self.pods.events().normal(job, "SuccessfulDelete", format!("Deleted pod: {name}"));
        }
        if !plan.created.is_empty() {
            let bodies = plan.created.iter().map(|start| body(job, *start)).collect();
            self.pods.create(key, job, bodies).await?;
        }
        Ok(())
    }
}

/// The status as the API writes it: a zero that may be left out is left out.
fn shown(status: &JobStatus) -> Value {
    let mut shown = json!(status);
    for field in ["active", "succeeded", "failed"] {
        if shown.get(field).and_then(Value::as_i64) == Some(0) {
            shown[field] = Value::Null;
        }
    }
    for field in ["succeeded", "failed"] {
        let list = &mut shown["uncountedTerminatedPods"][field];
        if list.as_array().is_some_and(Vec::is_empty) {
            *list = Value::Null;
        }
    }
    shown
}

/// The pod that a Job makes; an indexed one knows its index as annotation, label, host name and variable.
pub fn body(job: &Job, start: Start) -> Value {
    let index = start.index;
    let prefix = index.map_or(format!("{}-", job.name()), |i| format!("{}-{i}-", job.name()));
    let mut pod = pod_of(job, &job.spec.template, json!({ "generateName": prefix }));
    let mut finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(TRACKING.into());
    pod["metadata"]["finalizers"] = finalizers.into();
    if let Some(index) = index {
        pod["metadata"]["annotations"][COMPLETION_INDEX] = index.to_string().into();
        pod["metadata"]["labels"][COMPLETION_INDEX] = index.to_string().into();
        if job.spec.backoff_limit_per_index.is_some() {
            pod["metadata"]["annotations"][INDEX_FAILURES] = start.failures.to_string().into();
        }
        if start.ignored > 0 {
            pod["metadata"]["annotations"][INDEX_IGNORED] = start.ignored.to_string().into();
        }
        pod["spec"]["hostname"] = format!("{}-{index}", job.name()).into();
        let path = format!("metadata.annotations['{COMPLETION_INDEX}']");
        let variable =
            json!({ "name": "JOB_COMPLETION_INDEX", "valueFrom": { "fieldRef": { "fieldPath": path } } });
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
                let mut env = container["env"].as_array().cloned().unwrap_or_default();
                env.push(variable.clone());
                container["env"] = env.into();
            }
        }
        if pod["spec"]["initContainers"].is_null()
            && let Some(spec) = pod["spec"].as_object_mut()
        {
            spec.remove("initContainers");
        }
    }
    pod
}

#[async_trait]
impl Reconciler for JobController {
    fn name(&self) -> &'static str {
        "job-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.pods.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let settled = self.pods.expectations.settled(key);
        let Some(job) = self.pods.caches().jobs.get(key) else {
            self.clean_up(key).await?;
            return Ok(None);
        };
        let version = job.metadata.resource_version.as_deref().and_then(|v| v.parse::<u64>().ok());
        let written = self.written.lock().get(key).copied();
        if version.zip(written).is_some_and(|(seen, written)| seen < written) {
            return Ok(None);
        }
        let others = |manager: &String| manager != "kubernetes.io/job-controller";
        if job.spec.managed_by.as_ref().is_some_and(others) {
            return Ok(None);
        }
        let selector =
            Selector::from_label_selector(&job.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        let pods = self.pods.claimed(job.as_ref(), &selector).await?;
        let back_off = self.failures.lock().get(key).copied();
        let plan = plan(&State { job: &job, pods: &pods, settled, back_off, now: Timestamp::now() });
        let again = plan.again;
        self.act(key, &job, plan).await?;
        Ok(again)
    }
}
