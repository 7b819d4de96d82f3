//! Jobs and CronJobs.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, manifest, pods, until};

fn job(name: &str, spec: Value, steps: &[&str]) -> Value {
    let mut job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"template": {"spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "steps:v1", "args": steps}],
        }}},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let all = object["status"]["conditions"].as_array()?;
    all.iter().find(|c| c["type"] == kind && c["status"] == "True")
}

/// Row: Job, CronJob: runs to completion; failed pods are retried up to the limit; finished pods stay for their logs; a schedule
/// Profile: loopback
#[test]
fn mission_m13_jobs_run_to_completion() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("steps", "steps:v1")?;
    cluster.push("train", "registry.example/train:1.0")?;
    manifest(&cluster, "06.yaml", include_str!("06-train-job.yaml"))?;
    // These take their time and run meanwhile.
    let fails = job("fails", json!({"backoffLimit": 1}), &["print trying", "exit 1"]);
    let late = job("late", json!({"activeDeadlineSeconds": 3}), &["sleep 600000"]);
    let indexed = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"});
    let indexed = job("indexed", indexed, &["env JOB_COMPLETION_INDEX"]);
    let fleeting = job("fleeting", json!({"ttlSecondsAfterFinished": 1}), &["print short"]);
    apply(&cluster, &[fails, late, indexed, fleeting])?;

    cluster
        .kubectl(&["wait", "--for=condition=complete", "job/train-job", "--timeout=60s"])
        .with_context(|| cluster.kubectl(&["describe", "pods"]).unwrap_or_default())?;
    has(&cluster.kubectl(&["get", "job", "train-job"])?, &["Complete", "1/1"])?;
    has(&cluster.kubectl(&["logs", "job/train-job"])?, &["epoch 500", "trained: y = 3.00 x + 1.00"])?;
    let trained = pods(&cluster, "job-name=train-job")?;
    ensure!(trained.len() == 1 && trained[0]["status"]["phase"] == "Succeeded", "{trained:#?}");
    ensure!(trained[0]["metadata"]["finalizers"].is_null(), "a counted pod has no finalizer");

    let done = until(&cluster, &["job", "indexed"], "completes", |j| condition(j, "Complete").is_some())?;
    ensure!(
        done["status"]["completedIndexes"] == "0-2" && done["status"]["succeeded"] == 3,
        "{:#}",
        done["status"]
    );
    let mut said = Vec::new();
    for pod in pods(&cluster, "job-name=indexed")? {
        said.push(cluster.kubectl(&["logs", &super::name(&pod)])?.trim().to_owned());
    }
    said.sort();
    ensure!(
        said == ["JOB_COMPLETION_INDEX=0", "JOB_COMPLETION_INDEX=1", "JOB_COMPLETION_INDEX=2"],
        "{said:?}"
    );

    let over = until(&cluster, &["job", "late"], "fails", |j| condition(j, "Failed").is_some())?;
    ensure!(
        condition(&over, "Failed").is_some_and(|c| c["reason"] == "DeadlineExceeded"),
        "{:#}",
        over["status"]
    );
    let failed = until(&cluster, &["job", "fails"], "fails", |j| condition(j, "Failed").is_some())?;
    ensure!(
        condition(&failed, "Failed").is_some_and(|c| c["reason"] == "BackoffLimitExceeded"),
        "{:#}",
        failed["status"]
    );
    ensure!(failed["status"]["failed"] == 2, "{:#}", failed["status"]);
    let tries = pods(&cluster, "job-name=fails")?;
    ensure!(tries.len() == 2, "{} pods", tries.len());
    has(&cluster.kubectl(&["logs", &super::name(&tries[0])])?, &["trying"])?;
    eventually("a Job with a time to live goes", PATIENCE, || {
        Ok(cluster.kubectl(&["get", "job", "fleeting", "--ignore-not-found"])?.is_empty())
    })?;

    suspended(&cluster)?;
    scheduled(&cluster)?;
    cluster.stop()
}

/// A Job that is suspended has no pods.
fn suspended(cluster: &Cluster) -> Result<()> {
    apply(cluster, &[job("held", json!({"suspend": true}), &["print free"])])?;
    until(cluster, &["job", "held"], "is suspended", |j| condition(j, "Suspended").is_some())?;
    ensure!(pods(cluster, "job-name=held")?.is_empty());
    cluster.kubectl(&["patch", "job", "held", "--type=merge", "-p", r#"{"spec":{"suspend":false}}"#])?;
    cluster.kubectl(&["wait", "--for=condition=complete", "job/held", "--timeout=60s"]).map(drop)
}

fn scheduled(cluster: &Cluster) -> Result<()> {
    let template = job("", json!({}), &["print on time"])["spec"].take();
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "often"},
        "spec": {"schedule": "@every 2s", "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": template}},
    });
    apply(cluster, &[cron])?;
    let ran = |c: &Value| c["status"]["lastSuccessfulTime"].is_string();
    let cron = until(cluster, &["cronjob", "often"], "has run", ran)?;
    ensure!(cron["status"]["lastScheduleTime"].is_string());
    let jobs = cluster.get(&["jobs"])?;
    let of = |j: &&Value| j["metadata"]["ownerReferences"][0]["name"] == "often";
    let made = jobs["items"].as_array().into_iter().flatten().find(of).context("its Job")?;
    has(&cluster.kubectl(&["logs", &format!("job/{}", super::name(made))])?, &["on time"])?;
    has(&cluster.kubectl(&["describe", "cronjob", "often"])?, &["SuccessfulCreate", "Created job often-"])?;
    cluster.kubectl(&["patch", "cronjob", "often", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#])?;
    cluster.kubectl(&["create", "job", "by-hand", "--from=cronjob/often"])?;
    cluster.kubectl(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"]).map(drop)
}
