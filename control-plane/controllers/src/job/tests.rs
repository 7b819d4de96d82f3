//! Plans of Jobs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::TRACKING;
use super::back_off::BackOff;
use super::indexes;
use super::plan::{Plan, Start, State, plan};
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
    after(job, pods, None)
}

fn after(job: &Job, pods: &[Arc<Pod>], back_off: Option<BackOff>) -> Plan {
    plan(&State { job, pods, settled: true, back_off, now: Timestamp::from_second(NOW).unwrap() })
}

fn made(plan: &Plan) -> Vec<Option<i64>> {
    plan.created.iter().map(|start| start.index).collect()
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
    assert_eq!(made(&again), [None]);
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
    assert_eq!(made(&plan), [None]);
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
    assert_eq!(made(&plan), [Some(4)]);
    assert_eq!(indexes::write(&indexes::read("1,3-5,7,8,9", 100)), "1,3-5,7-9");
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

fn indexed(spec: Value, status: Value) -> Job {
    let mut all = json!({ "completionMode": "Indexed", "completions": 3, "parallelism": 3 });
    json_patch::merge(&mut all, &spec);
    job(all, status)
}

fn of_index(index: i64) -> Value {
    json!({ "metadata": { "annotations": { "batch.kubernetes.io/job-completion-index": index.to_string() } } })
}

#[test]
fn failures_of_pods_that_are_gone_still_count_for_the_pause() {
    let retried = job(json!({}), json!({ "failed": 3 }));
    let now = Timestamp::from_second(NOW).unwrap();
    let past = BackOff { failures: 3, last: Timestamp::from_second(NOW - 15).ok() };
    let waits = after(&retried, &[], Some(past));
    assert_eq!(
        (waits.created.len(), waits.again),
        (0, Some(Duration::from_secs(25))),
        "40 s after the third"
    );
    let gone = pod("a", "Succeeded", json!({}));
    assert_eq!(past.after(&[&gone], now), BackOff::default(), "a success ends it");
}

#[test]
fn each_index_has_its_own_limit_and_pause() {
    let spec = json!({ "backoffLimitPerIndex": 1, "maxFailedIndexes": 1, "backoffLimit": null });
    let mut limited = indexed(spec, json!({}));
    let failed = pod("a", "Failed", of_index(0));
    let others = [pod("b", "Running", of_index(1)), pod("c", "Running", of_index(2))];
    let all = [vec![failed.clone()], others.to_vec()].concat();
    let waits = run(&limited, &all);
    assert_eq!((waits.created.len(), waits.again), (0, Some(Duration::from_secs(5))));
    assert!(waits.counted.is_empty(), "its finalizer stands until its successor is there");
    let mut old = failed.as_ref().clone();
    let ended = json!([{ "name": "c", "state": { "terminated": { "exitCode": 1, "finishedAt": at(11) } } }]);
    old.status.container_statuses = serde_json::from_value(ended).unwrap();
    let again = run(&limited, &[vec![Arc::new(old)], others.to_vec()].concat());
    assert_eq!(again.created, [Start { index: Some(0), failures: 1, ignored: 0 }]);
    // The second failure is the index's last, and it does not end the others.
    let mut second = of_index(0);
    second["metadata"]["annotations"]["batch.kubernetes.io/job-index-failure-count"] = "1".into();
    let over = run(&limited, &[vec![pod("d", "Failed", second)], others.to_vec()].concat());
    assert_eq!(over.status.failed_indexes.as_deref(), Some("0"));
    assert!(over.created.is_empty() && over.deleted.is_empty() && over.counted.len() == 1);
    assert!(condition(&over.status.conditions, "FailureTarget").is_none());
    limited.status = over.status;
    let mut rest = vec![pod("b", "Succeeded", of_index(1)), pod("c", "Succeeded", of_index(2))];
    settle(&mut limited, &mut rest);
    assert_eq!(limited.finished().map(|c| c.reason.as_str()), Some("FailedIndexes"));
    assert_eq!(limited.status.completed_indexes.as_deref(), Some("1,2"));
}

#[test]
fn too_many_failed_indexes_or_a_rule_end_it() {
    let spec = json!({ "backoffLimitPerIndex": 5, "maxFailedIndexes": 0, "podFailurePolicy": { "rules": [
        { "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [1] } },
    ] } });
    let plan =
        run(&indexed(spec, json!({})), &[pod("a", "Failed", of_index(0)), pod("b", "Running", of_index(1))]);
    assert_eq!(plan.status.failed_indexes.as_deref(), Some("0"), "by the rule, at its first failure");
    let why = condition(&plan.status.conditions, "FailureTarget").unwrap();
    assert_eq!(why.reason, "MaxFailedIndexesExceeded");
    assert_eq!(plan.deleted.len(), 1);
}

#[test]
fn a_success_policy_ends_a_job_early() {
    let rules = json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0,2", "succeededCount": 1 }] } });
    let mut enough = indexed(rules, json!({}));
    let none = run(&enough, &[pod("b", "Succeeded", of_index(1))]);
    assert!(condition(&none.status.conditions, "SuccessCriteriaMet").is_none());
    let plan = run(&enough, &[pod("a", "Succeeded", of_index(2)), pod("b", "Running", of_index(1))]);
    let met = condition(&plan.status.conditions, "SuccessCriteriaMet").unwrap();
    assert_eq!((met.reason.as_str(), met.message.as_str()), ("SuccessPolicy", "Matched rules at index 0"));
    assert_eq!(plan.deleted.len(), 1, "what still runs is stopped");
    enough.status = plan.status;
    settle(&mut enough, &mut []);
    let end = enough.finished().unwrap();
    assert_eq!((end.type_.as_str(), end.reason.as_str()), ("Complete", "SuccessPolicy"));
}

#[test]
fn an_elastic_job_grows_and_shrinks() {
    let all = [0, 1, 2].map(|i| pod(&format!("p{i}"), "Running", of_index(i)));
    let more = run(&indexed(json!({ "completions": 5, "parallelism": 5 }), json!({})), &all);
    assert_eq!(made(&more), [Some(3), Some(4)]);
    let fewer = indexed(json!({ "completions": 2, "parallelism": 2 }), json!({ "completedIndexes": "0,2" }));
    let fewer = run(&fewer, &all[1..]);
    assert_eq!(fewer.status.completed_indexes.as_deref(), Some("0"), "an index beyond the end is no success");
    let dropped: Vec<_> = fewer.dropped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(dropped, ["p2"]);
    assert!(fewer.created.is_empty());
}

#[test]
fn a_pod_that_ends_is_waited_for_where_the_policy_says_so() {
    let leaving = pod("a", "Running", json!({ "metadata": { "deletionTimestamp": at(1) } }));
    let waits =
        run(&job(json!({ "podReplacementPolicy": "Failed" }), json!({})), std::slice::from_ref(&leaving));
    assert_eq!((waits.created.len(), waits.status.terminating, waits.counted.len()), (0, 1, 0));
    let at_once = run(&job(json!({ "podReplacementPolicy": "TerminatingOrFailed" }), json!({})), &[leaving]);
    assert_eq!(at_once.status.uncounted_terminated_pods.failed, ["a"]);
}

#[test]
fn restarts_in_place_count_up_to_the_limit() {
    let restarted = |times: i32| {
        pod(
            "a",
            "Running",
            json!({ "spec": { "restartPolicy": "OnFailure" }, "status": { "containerStatuses": [{ "name": "c", "restartCount": times }] } }),
        )
    };
    let limited = job(json!({ "backoffLimit": 2 }), json!({}));
    assert!(condition(&run(&limited, &[restarted(1)]).status.conditions, "FailureTarget").is_none());
    let over = run(&limited, &[restarted(2)]);
    let why = condition(&over.status.conditions, "FailureTarget").unwrap();
    assert_eq!(why.reason, "BackoffLimitExceeded");
}
