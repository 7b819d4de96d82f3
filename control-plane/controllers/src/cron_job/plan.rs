//! From a CronJob and its Jobs to what must be done. Pure.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::schedule::Schedule;
use crate::view::{CronJob, CronJobStatus, Job, Meta, condition};

/// A Job to delete: its name and uid.
pub type Name = (String, String);

/// What to say about the CronJob: whether it is a warning, the reason and the words.
pub type Said = (bool, &'static str, String);

/// What to do, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Jobs that are too old to keep, or that the next one replaces.
    pub deleted: Vec<Name>,
    /// The time for which a Job is made.
    pub start: Option<Timestamp>,
    /// The status as it is without the new Job.
    pub status: CronJobStatus,
    pub said: Vec<Said>,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// The plan; `jobs` are those that the CronJob owns, `calling` says whether a call of its handler is under way.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], calling: bool, now: Timestamp) -> Plan {
    let mut plan = Plan { status: cron.status.clone(), ..Plan::default() };
    history(cron, jobs, &mut plan);
    let running = jobs.iter().filter(|j| j.finished().is_none());
    let mut running: Vec<&Arc<Job>> = running.collect();
    running.sort_by_key(|j| j.name());
    for job in &cron.status.active {
        let uid = job["uid"].as_str().unwrap_or_default();
        if let Some(job) = jobs.iter().find(|j| j.uid() == uid).filter(|j| j.finished().is_some()) {
            let how = job.finished().map(|c| c.type_.as_str()).unwrap_or_default();
            let words = format!("Saw completed job: {}, condition: {how}", job.name());
            plan.said.push((false, "SawCompletedJob", words));
        }
    }
    plan.status.active = running.iter().map(|j| reference(j)).collect();
    let ended = jobs.iter().filter_map(|j| {
        condition(&j.status.conditions, "Complete").filter(|c| c.status == "True")?;
        j.status.completion_time.clone()
    });
    let last = ended.map(|t| t.0).max();
    if last > cron.status.last_successful_time.as_ref().map(|t| t.0) {
        plan.status.last_successful_time = last.map(Time);
    }
    if cron.is_terminating() || cron.spec.suspend {
        return plan;
    }
    match Schedule::parse(&cron.spec.schedule, cron.spec.time_zone.as_deref()) {
        Ok(schedule) => start(cron, &schedule, (&running, calling), now, &mut plan),
        Err(why) => {
            let words = format!("invalid schedule: {} : {why}", cron.spec.schedule);
            plan.said.push((true, "InvalidSchedule", words));
        }
    }
    plan
}

/// How the status names a Job.
pub fn reference(job: &Job) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "namespace": job.namespace(), "name": job.name(), "uid": job.uid(),
        "resourceVersion": job.metadata.resource_version,
    })
}

fn start(
    cron: &CronJob,
    schedule: &Schedule,
    (running, calling): (&[&Arc<Job>], bool),
    now: Timestamp,
    plan: &mut Plan,
) {
    let created = cron.created().unwrap_or(now);
    let mut since = cron.status.last_schedule_time.as_ref().map_or(created, |t| t.0);
    let deadline = cron.spec.starting_deadline_seconds;
    if let Some(earliest) = deadline.and_then(|d| Timestamp::from_second(now.as_second() - d).ok()) {
        since = since.max(earliest);
    }
    let next = schedule.next(now);
    plan.again = next.map(|n| {
        let left = n.as_millisecond() - now.as_millisecond();
        // A little later, so that the time has surely come.
        Duration::from_millis(u64::try_from(left).unwrap_or(0) + 50)
    });
    let missed = schedule.missed(since, now);
    let Some(at) = missed.last else { return };
    if missed.count >= 100 && deadline.is_none() {
        let words =
            "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.said.push((true, "TooManyMissedTimes", words.to_string()));
    }
    if deadline.is_some_and(|d| at.as_second() + d < now.as_second()) {
        let words = format!("Missed scheduled time to start a job: {at}");
        plan.said.push((true, "MissSchedule", words));
        return;
    }
    match cron.spec.concurrency_policy.as_deref() {
        Some("Forbid") if !running.is_empty() || calling => {
            let words =
                "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.said.push((false, "JobAlreadyActive", words.to_string()));
            return;
        }
        Some("Replace") => {
            plan.deleted.extend(running.iter().map(|j| name(j)));
            plan.status.active.clear();
        }
        _ => {}
    }
    plan.start = Some(at);
}

fn name(job: &Job) -> Name {
    (job.name().to_string(), job.uid().to_string())
}

// Finished Jobs beyond the limits go, oldest first.
fn history(cron: &CronJob, jobs: &[Arc<Job>], plan: &mut Plan) {
    for (how, limit) in [
        ("Complete", cron.spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", cron.spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let ended = jobs.iter().filter(|j| j.finished().is_some_and(|c| c.type_ == how));
        let mut ended: Vec<&Arc<Job>> = ended.filter(|j| !j.is_terminating()).collect();
        ended.sort_by_key(|j| Reverse((j.status.start_time.as_ref().map(|t| t.0), j.name().to_string())));
        let limit = usize::try_from(limit).unwrap_or(0);
        plan.deleted.extend(ended.into_iter().skip(limit).map(|j| name(j)));
    }
}
