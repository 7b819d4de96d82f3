//! From a Job and its pods to what must be done. Pure.
//!
//! How ended pods are counted is in [`super::count`].

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::back_off::{self, BackOff};
use super::count::{Counted, count, failures};
use super::policy::{self, Verdict, judge};
use super::{TRACKING, indexes};
use crate::events::whole_second;
use crate::pod_control::{Victim, victim};
use crate::view::{Condition, Job, JobStatus, Meta, Pod, condition};

const BURST: usize = 500;

/// Everything that a plan depends on.
pub struct State<'a> {
    pub job: &'a Job,
    /// The pods that it owns.
    pub pods: &'a [Arc<Pod>],
    /// Whether the cache has seen all that was done before.
    pub settled: bool,
    /// What is remembered of its failures; None when nothing is (a controller that has just started).
    pub back_off: Option<BackOff>,
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
    /// Pods to make.
    pub created: Vec<Start>,
    /// What to remember once the status is written.
    pub back_off: BackOff,
    /// Look again after this.
    pub again: Option<Duration>,
}

/// A pod to make.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Start {
    /// Its completion index.
    pub index: Option<i64>,
    /// How often the index failed before: counted, and ignored by the pod failure policy.
    pub failures: i64,
    pub ignored: i64,
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
    let counted = count(state, &mut plan);
    plan.back_off = state.back_off.unwrap_or_else(|| {
        let known = |p: &&Arc<Pod>| p.is_finished() && !counted.new.iter().any(|n| n.uid() == p.uid());
        BackOff::default().after(&state.pods.iter().filter(known).collect::<Vec<_>>(), state.now)
    });
    plan.back_off = plan.back_off.after(&counted.new, state.now);
    if !job.spec.suspend && plan.status.start_time.is_none() {
        plan.status.start_time = Some(Time(whole_second(state.now)));
    }
    let active: Vec<&Arc<Pod>> = state.pods.iter().filter(|p| p.is_active()).collect();
    let terminating = state.pods.iter().filter(|p| p.is_terminating() && !p.is_finished()).count();
    if ending(&plan.status).is_none() {
        decide(state, &mut plan, &counted, active.len());
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
                fill(state, &mut plan, &counted, &active, terminating);
            }
        }
    }
    plan
}

/// A count as the API has it.
pub fn len(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn ending(status: &JobStatus) -> Option<&Condition> {
    let is = |type_: &str| condition(&status.conditions, type_).filter(|c| c.status == "True");
    is("FailureTarget").or_else(|| is("SuccessCriteriaMet"))
}

// Whether the Job is over, and how.
fn decide(state: &State<'_>, plan: &mut Plan, counted: &Counted<'_>, active: usize) {
    let (job, now) = (state.job, state.now);
    if let Some((reason, message)) = failure(state, plan, counted) {
        return set(&mut plan.status, "FailureTarget", "True", reason, &message, now);
    }
    if let Some(words) = policy::succeeded(job, &counted.done) {
        return set(&mut plan.status, "SuccessCriteriaMet", "True", "SuccessPolicy", &words, now);
    }
    let enough = match job.spec.completions {
        None => counted.succeeded > 0 && active == 0,
        Some(wanted) => counted.succeeded >= wanted && active == 0,
    };
    if enough && !job.spec.suspend {
        let words = "Reached expected number of succeeded pods";
        set(&mut plan.status, "SuccessCriteriaMet", "True", "CompletionsReached", words, now);
    }
}

// Why the Job has failed, in Kubernetes' words.
fn failure(state: &State<'_>, plan: &mut Plan, counted: &Counted<'_>) -> Option<(&'static str, String)> {
    let (job, spec) = (state.job, &state.job.spec);
    if let Some(why) = &counted.by_policy {
        return Some(("PodFailurePolicy", why.clone()));
    }
    let per_index = spec.backoff_limit_per_index.is_some();
    let limit = spec.backoff_limit.unwrap_or(if per_index { i64::from(i32::MAX) } else { 6 });
    if counted.failed > limit || restarted_too_often(state.pods, limit) {
        return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".into()));
    }
    if let (Some(start), Some(seconds), false) =
        (&plan.status.start_time, spec.active_deadline_seconds, spec.suspend)
    {
        let end = start.0.as_millisecond().saturating_add(seconds.saturating_mul(1000));
        match u64::try_from(end - state.now.as_millisecond()) {
            Ok(left) if left > 0 => plan.again = Some(Duration::from_millis(left)),
            _ => {
                let words = "Job was active longer than specified deadline";
                return Some(("DeadlineExceeded", words.into()));
            }
        }
    }
    let failed = len(counted.failed_indexes.len());
    if job.is_indexed() && failed > 0 {
        if spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let words = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", words.into()));
        }
        if failed + len(counted.done.len()) >= spec.completions.unwrap_or(i64::MAX) {
            return Some(("FailedIndexes", "Job has failed indexes".into()));
        }
    }
    None
}

// Containers that were restarted in place count like failed pods, and the one that reaches the limit is one too many.
fn restarted_too_often(pods: &[Arc<Pod>], limit: i64) -> bool {
    let running = pods.iter().filter(|p| p.spec.restart_policy.as_deref() == Some("OnFailure"));
    let running = running.filter(|p| matches!(p.phase(), "Running" | "Pending"));
    let containers =
        running.flat_map(|p| p.status.init_container_statuses.iter().chain(&p.status.container_statuses));
    let restarts: i64 = containers.map(|c| i64::from(c.restart_count)).sum();
    restarts > 0 && restarts >= limit
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
fn fill(state: &State<'_>, plan: &mut Plan, counted: &Counted<'_>, active: &[&Arc<Pod>], terminating: usize) {
    let job = state.job;
    let parallelism = job.spec.parallelism.unwrap_or(1).max(0);
    let wanted = match job.spec.completions {
        Some(completions) => {
            let over = counted.succeeded + len(counted.failed_indexes.len());
            (completions - over).clamp(0, parallelism)
        }
        // One success means that the others come to an end by themselves.
        None if counted.succeeded > 0 => parallelism.min(len(active.len())),
        None => parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let (kept, superfluous) = keep(job, counted, active);
    plan.dropped = superfluous.iter().map(|p| victim(p)).collect();
    if kept.len() > wanted {
        plan.dropped.extend(kept.iter().take(kept.len() - wanted).map(|p| victim(p)));
        return;
    }
    let there = kept.len() + if job.waits_for_ends() { terminating } else { 0 };
    let missing = wanted.saturating_sub(there).min(BURST);
    if missing == 0 || !plan.dropped.is_empty() {
        return;
    }
    let mut wait = |left: Duration| plan.again = Some(plan.again.map_or(left, |a| a.min(left)));
    let per_index = job.spec.backoff_limit_per_index.is_some();
    if let Some(left) = plan.back_off.left(state.now).filter(|_| !per_index) {
        return wait(left);
    }
    let Some(completions) = job.spec.completions.filter(|_| job.is_indexed()) else {
        plan.created = vec![Start::default(); missing];
        return;
    };
    let taken: BTreeSet<i64> = kept.iter().filter_map(|p| indexes::of(p)).collect();
    let leaving: BTreeSet<i64> = state
        .pods
        .iter()
        .filter(|p| job.waits_for_ends() && p.is_terminating() && !p.is_finished())
        .filter_map(|p| indexes::of(p))
        .collect();
    let free = (0..completions).filter(|i| {
        !taken.contains(i)
            && !leaving.contains(i)
            && !counted.done.contains(i)
            && !counted.failed_indexes.contains(i)
    });
    for index in free {
        if plan.created.len() >= missing {
            break;
        }
        match start(job, index, counted.waiting.get(&index), state.now) {
            Ok(start) => plan.created.push(start),
            Err(left) => wait(left),
        }
    }
}

// The next pod of an index, with the failures before it, or how long it has to wait.
fn start(job: &Job, index: i64, failed: Option<&&Arc<Pod>>, now: Timestamp) -> Result<Start, Duration> {
    let Some(pod) = failed else { return Ok(Start { index: Some(index), ..Start::default() }) };
    let (counted, ignored) = failures(pod);
    let ignore = judge(job.spec.pod_failure_policy.as_ref(), pod) == Verdict::Ignore;
    let (failures, ignored) = (counted + i64::from(!ignore), ignored + i64::from(ignore));
    let times = u32::try_from(failures + ignored).unwrap_or(u32::MAX);
    match back_off::left(times, back_off::ended_at(pod, now), now) {
        Some(left) => Err(left),
        None => Ok(Start { index: Some(index), failures, ignored }),
    }
}

// Active pods, those that may best be stopped first; and those that have no work: of an index that is done, has failed, is
// out of range or is another pod's.
fn keep<'a>(
    job: &Job,
    counted: &Counted<'_>,
    active: &[&'a Arc<Pod>],
) -> (Vec<&'a Arc<Pod>>, Vec<&'a Arc<Pod>>) {
    let mut pods: Vec<&Arc<Pod>> = active.to_vec();
    pods.sort_by_key(|p| (p.node().is_some(), p.is_ready(), Reverse(p.created())));
    let Some(completions) = job.spec.completions.filter(|_| job.is_indexed()) else {
        return (pods, Vec::new());
    };
    let mut taken = BTreeSet::new();
    let (mut kept, mut superfluous) = (Vec::new(), Vec::new());
    // The last ones are the best to keep.
    for pod in pods.into_iter().rev() {
        let index = indexes::of(pod)
            .filter(|i| *i < completions && !counted.done.contains(i) && !counted.failed_indexes.contains(i));
        if index.is_some_and(|i| taken.insert(i)) {
            kept.push(pod);
        } else {
            superfluous.push(pod);
        }
    }
    kept.reverse();
    (kept, superfluous)
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
