//! Schedules and plans of CronJobs.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::plan;
use super::schedule::Schedule;
use crate::view::{CronJob, Job};

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn cron(spec: Value, status: Value) -> CronJob {
    let mut cron = json!({
        "metadata": { "name": "nightly", "namespace": "default", "uid": "cron", "creationTimestamp": "2026-01-01T00:00:30Z" },
        "spec": { "schedule": "*/5 * * * *", "jobTemplate": {} }, "status": {},
    });
    json_patch::merge(&mut cron, &json!({ "spec": spec, "status": status }));
    serde_json::from_value(cron).unwrap()
}

fn job(name: &str, end: Option<&str>, started: &str) -> Arc<Job> {
    let conditions = end.map(|e| json!([{ "type": e, "status": "True" }])).unwrap_or_else(|| json!([]));
    Arc::new(
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "default", "uid": name },
            "status": { "conditions": conditions, "startTime": started },
        }))
        .unwrap(),
    )
}

#[test]
fn schedules() {
    let next = |schedule: &str, zone: Option<&str>, after: &str| {
        Schedule::parse(schedule, zone).unwrap().next(at(after)).unwrap().to_string()
    };
    assert_eq!(next("*/5 * * * *", None, "2026-01-01T00:03:00Z"), "2026-01-01T00:05:00Z");
    assert_eq!(next("@daily", None, "2026-01-01T00:03:00Z"), "2026-01-02T00:00:00Z");
    assert_eq!(next("0 0 * * *", Some("Europe/Berlin"), "2026-01-01T00:03:00Z"), "2026-01-01T23:00:00Z");
    assert_eq!(next("@every 90s", None, "2026-01-01T00:00:00Z"), "2026-01-01T00:01:30Z");
    // Both day fields given: either matches.
    assert_eq!(next("0 0 13 * 5", None, "2026-01-01T00:00:00Z"), "2026-01-02T00:00:00Z");
    for wrong in ["", "* * * *", "* * * * * *", "61 * * * *", "@every never"] {
        assert!(Schedule::parse(wrong, None).is_err(), "{wrong}");
    }
    assert!(Schedule::parse("* * * * *", Some("Nowhere/Land")).is_err());
}

#[test]
fn a_time_that_has_come_makes_one_job() {
    let now = at("2026-01-01T00:05:10Z");
    let due = plan(&cron(json!({}), json!({})), &[], false, now);
    assert_eq!(due.start, Some(at("2026-01-01T00:05:00Z")));
    assert_eq!(due.again, Some(Duration::from_millis(290_050)));
    let done = plan(&cron(json!({}), json!({ "lastScheduleTime": "2026-01-01T00:05:00Z" })), &[], false, now);
    assert_eq!(done.start, None);
    assert_eq!(plan(&cron(json!({ "suspend": true }), json!({})), &[], false, now).start, None);
    let late = cron(json!({ "startingDeadlineSeconds": 5 }), json!({}));
    assert_eq!(plan(&late, &[], false, now).start, None);
}

#[test]
fn many_missed_times_make_the_latest_only() {
    let now = at("2026-02-01T00:01:00Z");
    let plan = plan(&cron(json!({ "schedule": "* * * * *" }), json!({})), &[], false, now);
    assert_eq!(plan.start, Some(now));
    assert_eq!(plan.said.first().map(|s| s.1), Some("TooManyMissedTimes"));
}

#[test]
fn concurrency() {
    let now = at("2026-01-01T00:05:10Z");
    let running = [job("a", None, "2026-01-01T00:00:00Z")];
    let with =
        |policy: &str| plan(&cron(json!({ "concurrencyPolicy": policy }), json!({})), &running, false, now);
    assert!(with("Allow").start.is_some() && with("Allow").deleted.is_empty());
    assert_eq!(with("Forbid").start, None);
    let replaced = with("Replace");
    assert!(replaced.start.is_some() && replaced.deleted.len() == 1 && replaced.status.active.is_empty());
}

#[test]
fn history_is_cut_oldest_first() {
    let jobs: Vec<_> = (1..6)
        .map(|n| job(&format!("c{n}"), Some("Complete"), &format!("2026-01-01T00:0{n}:00Z")))
        .chain((1..4).map(|n| job(&format!("f{n}"), Some("Failed"), &format!("2026-01-01T00:0{n}:00Z"))))
        .collect();
    let plan = plan(&cron(json!({ "suspend": true }), json!({})), &jobs, false, at("2026-01-01T01:00:00Z"));
    let names: Vec<_> = plan.deleted.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["c2", "c1", "f2", "f1"]);
}
