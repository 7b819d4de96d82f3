//! Counting of ended pods: each once, whatever is lost in between. Pure.
//!
//! A pod's uid goes into `status.uncountedTerminatedPods`, then its finalizer goes, then the uid is turned into a number.
//! Indexes count as such. Where failures count for each index, the last failed pod of an index keeps its finalizer until
//! its successor is there, because it carries the number of failures.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::TRACKING;
use super::indexes;
use super::plan::{Plan, State, len};
use super::policy::{Verdict, judge};
use crate::pod_control::victim;
use crate::view::{Job, Meta, Pod};

/// Annotation of an indexed pod: how often its index failed before.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation of an indexed pod: how often its index failed before without being counted.
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// The most uids in the status, as in Kubernetes.
const UNCOUNTED: usize = 500;

/// What a Job has done, with what was seen now.
#[derive(Debug, Default)]
pub struct Counted<'a> {
    pub succeeded: i64,
    pub failed: i64,
    /// Indexes that are done, and those that have failed for good.
    pub done: BTreeSet<i64>,
    pub failed_indexes: BTreeSet<i64>,
    /// For an index whose failure waits for a successor: the pod.
    pub waiting: BTreeMap<i64, &'a Arc<Pod>>,
    /// Pods that were not known to have ended before.
    pub new: Vec<&'a Arc<Pod>>,
    /// Why the pod failure policy fails the Job.
    pub by_policy: Option<String>,
}

/// How often the index of a pod had failed before it: counted, and ignored.
pub fn failures(pod: &Pod) -> (i64, i64) {
    let number = |key: &str| pod.annotation(key).and_then(|n| n.parse().ok()).unwrap_or(0);
    (number(INDEX_FAILURES), number(INDEX_IGNORED))
}

/// Whether a pod has failed, as far as this Job goes.
pub fn has_failed(job: &Job, pod: &Pod) -> bool {
    pod.phase() == "Failed" || (!job.waits_for_ends() && pod.is_terminating() && pod.phase() != "Succeeded")
}

/// Moves ended pods through the counting: the plan's status and `counted`.
pub fn count<'a>(state: &State<'a>, plan: &mut Plan) -> Counted<'a> {
    let job = state.job;
    let mut counted = Counted::default();
    let end = job.spec.completions.unwrap_or(i64::MAX);
    if job.is_indexed() {
        counted.done = indexes::read(job.status.completed_indexes.as_deref().unwrap_or_default(), end);
        counted.failed_indexes = indexes::read(job.status.failed_indexes.as_deref().unwrap_or_default(), end);
    }
    let held: Vec<&Arc<Pod>> = state.pods.iter().filter(|p| p.has_finalizer(TRACKING)).collect();
    settle(job, &held, plan);
    if job.is_indexed() {
        judge_indexes(job, &held, state.pods, &mut counted);
    }
    for pod in held {
        one(job, pod, plan, &mut counted);
    }
    let status = &mut plan.status;
    if job.is_indexed() {
        status.succeeded = len(counted.done.len());
        status.completed_indexes = Some(indexes::write(&counted.done));
        let per_index = job.spec.backoff_limit_per_index.is_some();
        status.failed_indexes = per_index.then(|| indexes::write(&counted.failed_indexes));
    }
    let uncounted = &status.uncounted_terminated_pods;
    counted.succeeded = status.succeeded + len(uncounted.succeeded.len());
    counted.failed += status.failed + len(uncounted.failed.len());
    counted
}

// Uids whose finalizer is gone become numbers.
fn settle(job: &Job, held: &[&Arc<Pod>], plan: &mut Plan) {
    let held: HashSet<&str> = held.iter().map(|p| p.uid()).collect();
    let settle = |uids: &mut Vec<String>| {
        let all = uids.len();
        uids.retain(|uid| held.contains(uid.as_str()));
        len(all - uids.len())
    };
    let status = &mut plan.status;
    let succeeded = settle(&mut status.uncounted_terminated_pods.succeeded);
    if !job.is_indexed() {
        status.succeeded += succeeded;
    }
    status.failed += settle(&mut status.uncounted_terminated_pods.failed);
}

// Which indexes are done, have failed, or wait for their next pod.
fn judge_indexes<'a>(job: &Job, held: &[&'a Arc<Pod>], all: &'a [Arc<Pod>], counted: &mut Counted<'a>) {
    let end = job.spec.completions.unwrap_or(i64::MAX);
    let within = |pod: &Pod| indexes::of(pod).filter(|i| *i < end);
    let succeeded = held.iter().filter(|p| p.phase() == "Succeeded");
    counted.done.extend(succeeded.filter_map(|p| within(p)));
    let Some(limit) = job.spec.backoff_limit_per_index else { return };
    let policy = job.spec.pod_failure_policy.as_ref();
    let active: HashSet<i64> = all.iter().filter(|p| p.is_active()).filter_map(|p| within(p)).collect();
    for pod in held.iter().filter(|p| has_failed(job, p)) {
        let Some(index) = within(pod).filter(|i| !counted.done.contains(i)) else { continue };
        let over = match judge(policy, pod) {
            Verdict::FailIndex => true,
            Verdict::Ignore => false,
            _ => failures(pod).0 >= limit,
        };
        if over {
            counted.failed_indexes.insert(index);
        } else if !active.contains(&index) {
            let before = |p: &Pod| failures(p).0 + failures(p).1;
            let latest = counted.waiting.entry(index).or_insert(pod);
            if before(pod) > before(latest) {
                *latest = pod;
            }
        }
    }
    let (done, failed) = (&counted.done, &counted.failed_indexes);
    counted.waiting.retain(|index, _| !done.contains(index) && !failed.contains(index));
}

fn one<'a>(job: &Job, pod: &'a Arc<Pod>, plan: &mut Plan, counted: &mut Counted<'a>) {
    let uncounted = &mut plan.status.uncounted_terminated_pods;
    let uid = pod.uid();
    if uncounted.succeeded.iter().chain(&uncounted.failed).any(|u| u == uid) {
        plan.counted.push(victim(pod));
    } else if uncounted.succeeded.len() + uncounted.failed.len() >= UNCOUNTED {
        // The next time.
    } else if pod.phase() == "Succeeded" {
        counted.new.push(pod);
        if !job.is_indexed() {
            uncounted.succeeded.push(uid.to_string());
        }
        plan.counted.push(victim(pod));
    } else if has_failed(job, pod) {
        counted.new.push(pod);
        let verdict = judge(job.spec.pod_failure_policy.as_ref(), pod);
        let counts = verdict != Verdict::Ignore;
        if let Verdict::FailJob(why) = verdict {
            counted.by_policy.get_or_insert(why);
        }
        if counted.waiting.values().any(|waiting| waiting.uid() == uid) {
            counted.failed += i64::from(counts);
            return;
        }
        if counts {
            uncounted.failed.push(uid.to_string());
        }
        plan.counted.push(victim(pod));
    }
}
