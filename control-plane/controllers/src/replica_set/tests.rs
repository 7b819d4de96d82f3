//! Plans of ReplicaSets.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{State, Step, plan, status};
use crate::view::{Pod, ReplicaSet};

const NOW: i64 = 1_700_000_000;

fn at(seconds_ago: i64) -> String {
    crate::events::api_time(Timestamp::from_second(NOW - seconds_ago).unwrap())
}

fn rs(replicas: i64) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "rs", "generation": 3 },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [] } },
        },
    }))
    .unwrap()
}

fn pod(name: &str, change: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "name": name, "namespace": "default", "uid": name, "labels": { "app": "web" }, "creationTimestamp": at(1000),
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true }],
        },
        "spec": { "nodeName": "n1" },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": at(900) }] },
    });
    json_patch::merge(&mut pod, &change);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn run(rs: &ReplicaSet, pods: &[Arc<Pod>], settled: bool) -> Step {
    plan(&State { rs, own: pods, related: pods, settled, now: Timestamp::from_second(NOW).unwrap() })
}

fn deleted(step: Step) -> Vec<String> {
    match step {
        Step::Delete(pods) => pods.into_iter().map(|(name, _)| name).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn counts() {
    let pods = [pod("a", json!({})), pod("b", json!({}))];
    assert_eq!(run(&rs(2), &pods, true), Step::Nothing);
    assert_eq!(run(&rs(5), &pods, true), Step::Create(3));
    assert_eq!(run(&rs(5), &pods, false), Step::Nothing, "waits for the cache");
    assert_eq!(run(&rs(2000), &pods, true), Step::Create(500));
    assert_eq!(deleted(run(&rs(0), &pods, true)).len(), 2);
    let finished = [
        pod("a", json!({ "status": { "phase": "Failed" } })),
        pod("b", json!({ "metadata": { "deletionTimestamp": at(1) } })),
    ];
    assert_eq!(run(&rs(1), &finished, true), Step::Create(1));
    let mut gone = rs(3);
    gone.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
    assert_eq!(run(&gone, &pods, true), Step::Nothing);
}

#[test]
fn deletion_ranking() {
    let not_ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let cases: [(&str, Value, Value); 8] = [
        ("unassigned first", json!({ "spec": { "nodeName": null } }), json!({})),
        ("pending first", json!({ "status": { "phase": "Pending" } }), json!({})),
        ("not ready first", not_ready, json!({})),
        (
            "cheap first",
            json!({ "metadata": { "annotations": { "controller.kubernetes.io/pod-deletion-cost": "-5" } } }),
            json!({}),
        ),
        (
            "ready for a short time first",
            json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": at(10) }] } }),
            json!({}),
        ),
        ("restarted first", json!({ "status": { "containerStatuses": [{ "restartCount": 4 }] } }), json!({})),
        ("young first", json!({ "metadata": { "creationTimestamp": at(3) } }), json!({})),
        (
            "a not ready pod before a young one",
            json!({ "status": { "conditions": null } }),
            json!({ "metadata": { "creationTimestamp": at(3) } }),
        ),
    ];
    for (what, victim, survivor) in cases {
        // The names would decide the other way round.
        let pods = [pod("a", survivor), pod("z", victim)];
        assert_eq!(deleted(run(&rs(1), &pods, true)), ["z"], "{what}");
    }
    let pods = [pod("a", json!({ "spec": { "nodeName": "n2" } })), pod("y", json!({})), pod("z", json!({}))];
    assert_eq!(deleted(run(&rs(2), &pods, true)), ["y"], "from the fuller node");
}

#[test]
fn statuses() {
    let mut rs = rs(4);
    rs.spec.min_ready_seconds = 60;
    let young = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": at(10) }] } });
    let pods = [
        pod("a", json!({})),
        pod("b", young),
        pod("c", json!({ "status": { "conditions": null } })),
        pod("d", json!({ "metadata": { "deletionTimestamp": at(1) } })),
    ];
    let now = Timestamp::from_second(NOW).unwrap();
    let new = status(&rs, &pods, Some(("FailedCreate", "no room")), now);
    assert_eq!(
        (new.replicas, new.fully_labeled_replicas, new.ready_replicas, new.available_replicas),
        (3, 3, 2, 1)
    );
    assert_eq!((new.observed_generation, new.terminating_replicas), (3, Some(1)));
    assert_eq!(new.conditions[0].reason, "FailedCreate");
    assert_eq!(super::plan::next_available(&rs, &pods, now), Some(std::time::Duration::from_secs(50)));
    rs.status = new;
    assert!(status(&rs, &pods, None, now).conditions.is_empty());
}
