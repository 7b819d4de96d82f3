//! From a Job and its pods to what must be done. Pure.
//!
//! A pod counts once: its uid goes into `status.uncountedTerminatedPods`, then its finalizer goes, then the uid is turned
//! into a number. Whatever is lost in between is found again in the status or on the pod.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::TRACKING;
use super::policy::{Verdict, judge};
use crate::events::whole_second;
use crate::pod_control::{Victim, victim};
use crate::view::{COMPLETION_INDEX, Condition, Job, JobStatus, Meta, Pod, condition};

const FIRST_PAUSE: i64 = 10_000;
const LONGEST_PAUSE: i64 = 600_000;
const BURST: usize = 500;

/// Everything that a plan depends on.
pub struct State<'a> {
    pub job: &'a Job,
    /// The pods that it owns.
    pub pods: &'a [Arc<Pod>],
    /// Whether the cache has seen all that was done before.
    pub settled: bool,
    pub now: Timestamp,
}

/// What to do, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The status to be written.
    pub status: JobStatus,
    /// Pods that the status counts: their finalizer goes.
    pub counted: Vec<Victim>,
    /// Active pods that are stopped and do not count: finalizer first, then the pod.
    pub dropped: Vec<Victim>,
    /// Active pods of a Job that is over.
    pub deleted: Vec<Victim>,
    /// Pods to make, by completion index.
    pub created: Vec<Option<i64>>,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// The plan.
pub fn plan(state: &State<'_>) -> Plan {
    let job = state.job;
    let mut plan = Plan { status: job.status.clone(), ..Plan::default() };
    if job.finished().is_some() || job.is_terminating() {
        let held = state.pods.iter().filter(|p| p.has_finalizer(TRACKING));
        plan.counted = held.map(|p| victim(p)).collect();
        if job.finished().is_some() {
            plan.deleted = state.pods.iter().filter(|p| p.is_active()).map(|p| victim(p)).collect();
        }
        return plan;
    }
    let failed_by_policy = count(state, &mut plan);
    if !job.spec.suspend && plan.status.start_time.is_none() {
        plan.status.start_time = Some(Time(whole_second(state.now)));
    }
    let active: Vec<&Arc<Pod>> = state.pods.iter().filter(|p| p.is_active()).collect();
    let terminating = state.pods.iter().filter(|p| p.is_terminating() && !p.is_finished()).count();
    let totals = Totals::of(job, &plan.status);
    if ending(&plan.status).is_none() {
        decide(state, &mut plan, &totals, active.len(), failed_by_policy);
    }
    plan.status.active = len(active.len());
    plan.status.ready = len(active.iter().filter(|p| p.is_ready()).count());
    plan.status.terminating = len(terminating);
    match ending(&plan.status).cloned() {
        Some(end) => finish(state, &mut plan, &end, &active, terminating),
        None if job.spec.suspend => {
            plan.dropped = active.iter().map(|p| victim(p)).collect();
            suspended(&mut plan.status, true, state.now);
        }
        None => {
            suspended(&mut plan.status, false, state.now);
            if state.settled {
                fill(state, &mut plan, &totals, &active, terminating);
            }
        }
    }
    plan
}

fn len(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

struct Totals {
    succeeded: i64,
    failed: i64,
}

impl Totals {
    fn of(job: &Job, status: &JobStatus) -> Self {
        let uncounted = &status.uncounted_terminated_pods;
        let more = if job.is_indexed() { 0 } else { len(uncounted.succeeded.len()) };
        Self { succeeded: status.succeeded + more, failed: status.failed + len(uncounted.failed.len()) }
    }
}

// Moves ended pods through the counting. Returns why the pod failure policy fails the Job, if it does.
fn count(state: &State<'_>, plan: &mut Plan) -> Option<String> {
    let job = state.job;
    let held: HashSet<&str> =
        state.pods.iter().filter(|p| p.has_finalizer(TRACKING)).map(|p| p.uid()).collect();
    let status = &mut plan.status;
    let before = status.uncounted_terminated_pods.clone();
    let settle = |uids: &mut Vec<String>| {
        let all = uids.len();
        uids.retain(|uid| held.contains(uid.as_str()));
        len(all - uids.len())
    };
    let succeeded = settle(&mut status.uncounted_terminated_pods.succeeded);
    if !job.is_indexed() {
        status.succeeded += succeeded;
    }
    status.failed += settle(&mut status.uncounted_terminated_pods.failed);
    let mut done = indexes(status.completed_indexes.as_deref().unwrap_or_default());
    let completions = job.spec.completions.unwrap_or(i64::MAX);
    let mut by_policy = None;
    for pod in state.pods.iter().filter(|p| p.has_finalizer(TRACKING)) {
        let uid = pod.uid().to_string();
        if before.succeeded.contains(&uid) || before.failed.contains(&uid) {
            plan.counted.push(victim(pod));
        } else if pod.phase() == "Succeeded" {
            match index(pod).filter(|i| job.is_indexed() && *i < completions) {
                Some(index) => drop(done.insert(index)),
                None if job.is_indexed() => {}
                None => status.uncounted_terminated_pods.succeeded.push(uid),
            }
            plan.counted.push(victim(pod));
        } else if has_failed(job, pod) {
            match judge(job.spec.pod_failure_policy.as_ref(), pod) {
                Verdict::Ignore => {}
                verdict => {
                    if let Verdict::FailJob(why) = verdict {
                        by_policy.get_or_insert(why);
                    }
                    status.uncounted_terminated_pods.failed.push(uid);
                }
            }
            plan.counted.push(victim(pod));
        }
    }
    if job.is_indexed() {
        status.succeeded = len(done.len());
        status.completed_indexes = Some(ranges(&done));
    }
    by_policy
}

fn has_failed(job: &Job, pod: &Pod) -> bool {
    let only_failed =
        job.spec.pod_replacement_policy.as_deref() == Some("Failed") || job.spec.pod_failure_policy.is_some();
    pod.phase() == "Failed" || (!only_failed && pod.is_terminating() && pod.phase() != "Succeeded")
}

/// The completion index of a pod.
pub fn index(pod: &Pod) -> Option<i64> {
    pod.annotation(COMPLETION_INDEX)?.parse().ok().filter(|i| *i >= 0)
}

fn ending(status: &JobStatus) -> Option<&Condition> {
    let is = |type_: &str| condition(&status.conditions, type_).filter(|c| c.status == "True");
    is("FailureTarget").or_else(|| is("SuccessCriteriaMet"))
}

// Whether the Job is over, and how.
fn decide(
    state: &State<'_>,
    plan: &mut Plan,
    totals: &Totals,
    active: usize,
    failed_by_policy: Option<String>,
) {
    let (job, now) = (state.job, state.now);
    let limit = job.spec.backoff_limit.unwrap_or(6);
    let left =
        plan.status.start_time.as_ref().zip(job.spec.active_deadline_seconds).map(|(start, seconds)| {
            start.0.as_millisecond() + seconds.saturating_mul(1000) - now.as_millisecond()
        });
    let failure = if let Some(why) = failed_by_policy {
        Some(("PodFailurePolicy", why))
    } else if totals.failed > limit || restarts(state.pods) > limit {
        Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".to_string()))
    } else if left.is_some_and(|l| l <= 0) && !job.spec.suspend {
        Some(("DeadlineExceeded", "Job was active longer than specified deadline".to_string()))
    } else {
        None
    };
    if let Some((reason, message)) = failure {
        return set(&mut plan.status, "FailureTarget", "True", reason, &message, now);
    }
    if let Some(left) = left.and_then(|l| u64::try_from(l).ok()).filter(|_| !job.spec.suspend) {
        plan.again = Some(Duration::from_millis(left));
    }
    let enough = match job.spec.completions {
        None => totals.succeeded > 0 && active == 0,
        Some(wanted) => totals.succeeded >= wanted && active == 0,
    };
    if enough && !job.spec.suspend {
        let words = "Reached expected number of succeeded pods";
        set(&mut plan.status, "SuccessCriteriaMet", "True", "CompletionsReached", words, now);
    }
}

// Containers that were restarted in place count like failed pods.
fn restarts(pods: &[Arc<Pod>]) -> i64 {
    let running = pods.iter().filter(|p| p.spec.restart_policy.as_deref() == Some("OnFailure"));
    let running = running.filter(|p| matches!(p.phase(), "Running" | "Pending"));
    let containers =
        running.flat_map(|p| p.status.init_container_statuses.iter().chain(&p.status.container_statuses));
    containers.map(|c| i64::from(c.restart_count)).sum()
}

// A Job whose end is decided: stops what runs; ends once nothing runs and everything is counted.
fn finish(state: &State<'_>, plan: &mut Plan, end: &Condition, active: &[&Arc<Pod>], terminating: usize) {
    plan.again = None;
    plan.deleted = active.iter().map(|p| victim(p)).collect();
    let uncounted = &plan.status.uncounted_terminated_pods;
    let counted = uncounted.succeeded.is_empty() && uncounted.failed.is_empty();
    if !active.is_empty() || terminating > 0 || !counted {
        return;
    }
    let kind = if end.type_ == "FailureTarget" { "Failed" } else { "Complete" };
    set(&mut plan.status, kind, "True", &end.reason, &end.message, state.now);
    if kind == "Complete" {
        plan.status.completion_time = Some(Time(whole_second(state.now)));
    }
}

fn suspended(status: &mut JobStatus, is: bool, now: Timestamp) {
    let was = condition(&status.conditions, "Suspended").map(|c| c.status == "True");
    if is {
        status.start_time = None;
        if was != Some(true) {
            set(status, "Suspended", "True", "JobSuspended", "Job suspended", now);
        }
    } else if was == Some(true) {
        set(status, "Suspended", "False", "JobResumed", "Job resumed", now);
        status.start_time = Some(Time(whole_second(now)));
    }
}

// Makes missing pods, or stops pods that are too many.
fn fill(state: &State<'_>, plan: &mut Plan, totals: &Totals, active: &[&Arc<Pod>], terminating: usize) {
    let job = state.job;
    let parallelism = job.spec.parallelism.unwrap_or(1).max(0);
    let wanted = match job.spec.completions {
        Some(completions) => (completions - totals.succeeded).clamp(0, parallelism),
        // One success means that the others come to an end by themselves.
        None if totals.succeeded > 0 => parallelism.min(len(active.len())),
        None => parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if active.len() > wanted {
        let mut pods: Vec<&&Arc<Pod>> = active.iter().collect();
        pods.sort_by_key(|p| (p.node().is_some(), p.is_ready(), std::cmp::Reverse(p.created())));
        plan.dropped = pods.iter().take(active.len() - wanted).map(|p| victim(p)).collect();
        return;
    }
    let waits =
        job.spec.pod_replacement_policy.as_deref() == Some("Failed") || job.spec.pod_failure_policy.is_some();
    let there = active.len() + if waits { terminating } else { 0 };
    let missing = wanted.saturating_sub(there).min(BURST);
    if missing == 0 {
        return;
    }
    if let Some(left) = back_off(state.pods, state.now) {
        plan.again = Some(plan.again.map_or(left, |a| a.min(left)));
        return;
    }
    plan.created = match job.spec.completions.filter(|_| job.is_indexed()) {
        None => vec![None; missing],
        Some(completions) => {
            let mut taken = indexes(plan.status.completed_indexes.as_deref().unwrap_or_default());
            taken.extend(active.iter().filter_map(|p| index(p)));
            (0..completions).filter(|i| !taken.contains(i)).take(missing).map(Some).collect()
        }
    };
}

// How long to wait after the last failure: 10 s, doubling with each failure since the last success.
fn back_off(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ended = |p: &&Arc<Pod>| p.is_finished() || p.is_terminating();
    let mut ends: Vec<(Timestamp, bool)> = pods
        .iter()
        .filter(ended)
        .map(|p| (p.finished_at().or(p.created()).unwrap_or(now), p.phase() == "Succeeded"))
        .collect();
    ends.sort();
    let failures = ends.iter().rev().take_while(|(_, succeeded)| !succeeded).count();
    let (last, _) = ends.last().filter(|_| failures > 0)?;
    let power = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(10);
    let pause = FIRST_PAUSE.saturating_mul(2_i64.saturating_pow(power)).min(LONGEST_PAUSE);
    let left = last.as_millisecond() + pause - now.as_millisecond();
    u64::try_from(left).ok().filter(|l| *l > 0).map(Duration::from_millis)
}

/// Sets a condition.
fn set(status: &mut JobStatus, type_: &str, value: &str, reason: &str, message: &str, now: Timestamp) {
    let now = Time(whole_second(now));
    status.conditions.retain(|c| c.type_ != type_);
    status.conditions.push(Condition {
        type_: type_.into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: Some(now.clone()),
        last_probe_time: Some(now),
        ..Condition::default()
    });
}

/// Reads `1,3-5`. What cannot be read is left out.
pub fn indexes(text: &str) -> BTreeSet<i64> {
    let mut all = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>())
            && last.saturating_sub(first) < 1_000_000
        {
            all.extend(first..=last);
        }
    }
    all
}

/// Writes `1,3-5`.
pub fn ranges(indexes: &BTreeSet<i64>) -> String {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for index in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => runs.push((*index, *index)),
        }
    }
    let words = runs.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(",")
}
