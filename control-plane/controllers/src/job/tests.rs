//! Plans of Jobs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::TRACKING;
use super::plan::{Plan, State, indexes, plan, ranges};
use crate::view::{Job, Pod, condition};

const NOW: i64 = 1_700_000_000;

fn at(seconds_ago: i64) -> String {
    crate::events::api_time(Timestamp::from_second(NOW - seconds_ago).unwrap())
}

fn job(spec: Value, status: Value) -> Job {
    let mut job = json!({
        "metadata": { "name": "train", "namespace": "default", "uid": "job" },
        "spec": { "parallelism": 1, "completions": 1, "backoffLimit": 6 },
        "status": { "startTime": at(100) },
    });
    json_patch::merge(&mut job, &json!({ "spec": spec, "status": status }));
    serde_json::from_value(job).unwrap()
}

fn pod(name: &str, phase: &str, change: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name, "finalizers": [TRACKING] },
        "spec": { "restartPolicy": "Never" },
        "status": { "phase": phase, "containerStatuses": [{ "name": "c" }] },
    });
    if matches!(phase, "Failed" | "Succeeded") {
        let ended = json!({ "terminated": { "exitCode": 1, "finishedAt": at(5) } });
        pod["status"]["containerStatuses"][0]["state"] = ended;
    }
    json_patch::merge(&mut pod, &change);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn run(job: &Job, pods: &[Arc<Pod>]) -> Plan {
    plan(&State { job, pods, settled: true, now: Timestamp::from_second(NOW).unwrap() })
}

/// Carries a Job through plans, as the API would, until nothing is left to do.
fn settle(job: &mut Job, pods: &mut [Arc<Pod>]) -> Plan {
    loop {
        let next = run(job, pods);
        if next.counted.is_empty() && next.status == job.status {
            return next;
        }
        job.status = next.status.clone();
        for pod in pods
            .iter_mut()
            .filter(|p| next.counted.iter().any(|(_, uid)| Some(uid) == p.metadata.uid.as_ref()))
        {
            Arc::make_mut(pod).metadata.finalizers = None;
        }
    }
}

#[test]
fn a_pod_counts_once_and_before_its_finalizer_goes() {
    let job = job(json!({ "completions": 2, "parallelism": 2 }), json!({}));
    let first = run(&job, &[pod("a", "Succeeded", json!({})), pod("b", "Running", json!({}))]);
    assert_eq!(first.status.uncounted_terminated_pods.succeeded, ["a"]);
    assert_eq!((first.status.succeeded, first.status.active), (0, 1));
    assert_eq!(first.counted.len(), 1);
    assert!(first.created.is_empty());
    // The finalizer is gone: now it is a number, and is not counted again.
    let written = Job { status: first.status, ..job };
    let pods = [
        pod("a", "Succeeded", json!({ "metadata": { "finalizers": null } })),
        pod("b", "Running", json!({})),
    ];
    let second = run(&written, &pods);
    assert_eq!(second.status.succeeded, 1);
    assert!(second.status.uncounted_terminated_pods.succeeded.is_empty() && second.counted.is_empty());
}

#[test]
fn it_completes_when_all_is_counted() {
    let mut job = job(json!({}), json!({}));
    settle(&mut job, &mut [pod("a", "Succeeded", json!({}))]);
    assert_eq!(job.status.succeeded, 1);
    assert_eq!(job.finished().map(|c| c.type_.as_str()), Some("Complete"));
    assert_eq!(job.finished().map(|c| c.reason.as_str()), Some("CompletionsReached"));
    assert!(job.status.completion_time.is_some());
}

#[test]
fn failures_wait_longer_and_longer_and_end_at_the_limit() {
    let mut retried = job(json!({ "backoffLimit": 1 }), json!({}));
    let mut pods = vec![pod("a", "Failed", json!({}))];
    let waits = settle(&mut retried, &mut pods);
    assert_eq!((retried.status.failed, waits.again), (1, Some(Duration::from_secs(5))));
    assert!(waits.created.is_empty());
    let old = json!({ "status": { "containerStatuses": [{ "name": "c", "state": { "terminated": { "exitCode": 1, "finishedAt": at(11) } } }] }, "metadata": { "finalizers": null } });
    let again = run(&retried, &[pod("a", "Failed", old.clone())]);
    assert_eq!(again.created, [None]);
    let mut pods = vec![pod("a", "Failed", old), pod("b", "Failed", json!({}))];
    settle(&mut retried, &mut pods);
    assert_eq!(retried.status.failed, 2);
    let end = retried.finished().unwrap();
    assert_eq!((end.type_.as_str(), end.reason.as_str()), ("Failed", "BackoffLimitExceeded"));
    assert!(condition(&retried.status.conditions, "FailureTarget").is_some());
}

#[test]
fn a_deadline_stops_what_runs_and_ends_when_it_has_stopped() {
    let mut job = job(json!({ "activeDeadlineSeconds": 60 }), json!({}));
    let over = run(&job, &[pod("a", "Running", json!({}))]);
    assert_eq!(over.deleted.len(), 1);
    assert!(over.status.conditions.iter().all(|c| c.type_ != "Failed"));
    job.status = over.status;
    let gone = [pod("a", "Failed", json!({ "metadata": { "deletionTimestamp": at(1) } }))];
    let mut gone = gone.to_vec();
    settle(&mut job, &mut gone);
    assert_eq!(job.finished().map(|c| c.reason.as_str()), Some("DeadlineExceeded"));
    assert_eq!(job.status.failed, 1);
}

#[test]
fn suspended_jobs_drop_their_pods_without_counting() {
    let mut held = job(json!({ "suspend": true }), json!({}));
    let plan = run(&held, &[pod("a", "Running", json!({}))]);
    assert_eq!((plan.dropped.len(), plan.status.failed), (1, 0));
    assert!(plan.status.start_time.is_none());
    held.status = plan.status;
    held.spec.suspend = false;
    let plan = run(&held, &[]);
    assert_eq!(plan.created, [None]);
    assert_eq!(condition(&plan.status.conditions, "Suspended").map(|c| c.status.as_str()), Some("False"));
}

#[test]
fn each_index_is_done_once() {
    let spec = json!({ "completionMode": "Indexed", "completions": 5, "parallelism": 3 });
    let indexed = job(spec, json!({ "completedIndexes": "0,2", "succeeded": 2 }));
    let of = |index: &str| json!({ "metadata": { "annotations": { "batch.kubernetes.io/job-completion-index": index } } });
    let plan = run(&indexed, &[pod("a", "Running", of("1")), pod("b", "Succeeded", of("3"))]);
    assert_eq!(plan.status.completed_indexes.as_deref(), Some("0,2,3"));
    assert_eq!(plan.status.succeeded, 3);
    assert_eq!(plan.created, [Some(4)]);
    assert_eq!(ranges(&indexes("1,3-5,7,8,9")), "1,3-5,7-9");
}

#[test]
fn the_failure_policy_decides_by_exit_code() {
    let rules = json!({ "podFailurePolicy": { "rules": [
        { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
        { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [42] } },
    ] } });
    let judged = job(rules, json!({}));
    let drained = json!({ "status": { "conditions": [{ "type": "DisruptionTarget", "status": "True" }] } });
    let plan = run(&judged, &[pod("a", "Failed", drained)]);
    assert_eq!((plan.status.uncounted_terminated_pods.failed.len(), plan.counted.len()), (0, 1));
    let fatal = json!({ "status": { "containerStatuses": [{ "name": "c", "state": { "terminated": { "exitCode": 42 } } }] } });
    let plan = run(&judged, &[pod("a", "Failed", fatal)]);
    let why = condition(&plan.status.conditions, "FailureTarget").unwrap();
    assert_eq!(why.reason, "PodFailurePolicy");
    assert_eq!(
        why.message,
        "Container c for pod default/a failed with exit code 42 matching FailJob rule at index 1"
    );
}
