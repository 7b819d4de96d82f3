//! How many pods, and how fast.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::behavior::{History, rules};
use super::custom::{self, Values};
use super::metrics::{PodMetricsList, wanted};
use super::replicas::{Answer, State, Target, Used, by_average, by_value, replicas};
use crate::view::Pod;

const NOW: i64 = 1_700_000_000;

fn pod(name: &str, change: Value) -> Arc<Pod> {
    let since = crate::events::api_time(Timestamp::from_second(NOW - 1000).unwrap());
    let mut pod = json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "100m" } } }] },
        "status": { "phase": "Running", "startTime": since, "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": since }] },
    });
    json_patch::merge(&mut pod, &change);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn run(pods: &[Arc<Pod>], used: &[(&str, i64)], target: Target, current: i64) -> Result<Answer, String> {
    let now = Timestamp::from_second(NOW).unwrap();
    let used: BTreeMap<String, Used> = used
        .iter()
        .map(|(n, milli)| ((*n).to_string(), Used { milli: *milli, at: now, window: 10 }))
        .collect();
    let state = State { pods, used: &used, resource: "cpu", container: None, tolerance: (0.1, 0.1), now };
    replicas(&state, target, current)
}

#[test]
fn utilization_decides() {
    let pods = [pod("a", json!({})), pod("b", json!({}))];
    let ask = |a, b| run(&pods, &[("a", a), ("b", b)], Target::Utilization(50), 2).unwrap();
    assert_eq!(ask(100, 100), Answer { replicas: 4, utilization: Some(100), average: 100 });
    assert_eq!(ask(52, 52).replicas, 2, "near enough");
    assert_eq!(ask(10, 10).replicas, 1);
    assert_eq!(run(&pods, &[("a", 300), ("b", 100)], Target::AverageValue(100), 2).unwrap().replicas, 4);
}

#[test]
fn pods_that_say_nothing_hold_back() {
    let pods = [pod("a", json!({})), pod("b", json!({})), pod("c", json!({}))];
    let up = run(&pods, &[("a", 100)], Target::Utilization(50), 3).unwrap();
    assert_eq!(up.replicas, 3, "one of three at 200% of its target is no reason");
    let down = run(&pods, &[("a", 10)], Target::Utilization(50), 3).unwrap();
    assert_eq!(down.replicas, 3, "the others may be busy");
    let starting = pod("b", json!({ "status": { "phase": "Pending" } }));
    let up = run(&[pod("a", json!({})), starting], &[("a", 100)], Target::Utilization(50), 2).unwrap();
    assert_eq!(up.replicas, 2, "the new pod will help");
    let why = run(
        &[pod("a", json!({ "spec": { "containers": [{ "name": "c" }] } }))],
        &[("a", 1)],
        Target::Utilization(50),
        1,
    );
    assert_eq!(why.unwrap_err(), "missing request for cpu in container c of Pod a");
    assert!(run(&pods, &[], Target::Utilization(50), 3).unwrap_err().contains("did not receive metrics"));
}

#[test]
fn scaling_is_bounded() {
    let (up, down) = rules(None, Duration::from_secs(300));
    let start = Instant::now();
    let mut history = History::default();
    let mut bound = |current, wanted, after| {
        history.bound((&up, &down), (1, 10), current, wanted, start + Duration::from_secs(after))
    };
    let first = bound(1, 50, 0);
    assert_eq!((first.replicas, first.limited.map(|l| l.0)), (5, Some("ScaleUpLimit")));
    let slow = bound(5, 1, 10);
    assert_eq!((slow.replicas, slow.able.0), (5, "ScaleDownStabilized"));
    assert_eq!(bound(5, 1, 301).replicas, 1);
    let high = bound(8, 50, 700);
    assert_eq!((high.replicas, high.limited.map(|l| l.0)), (10, Some("TooManyReplicas")));
}

#[test]
fn policies_count_what_was_done() {
    let behavior = json!({ "scaleUp": { "stabilizationWindowSeconds": 0, "policies": [{ "type": "Pods", "value": 2, "periodSeconds": 60 }] },
        "scaleDown": { "selectPolicy": "Disabled" } });
    let (up, down) = rules(Some(&serde_json::from_value(behavior).unwrap()), Duration::ZERO);
    let start = Instant::now();
    let mut history = History::default();
    assert_eq!(history.bound((&up, &down), (1, 10), 1, 9, start).replicas, 3);
    history.changed(2, start);
    assert_eq!(history.bound((&up, &down), (1, 10), 3, 9, start + Duration::from_secs(10)).replicas, 3);
    assert_eq!(history.bound((&up, &down), (1, 10), 3, 9, start + Duration::from_secs(61)).replicas, 5);
    assert_eq!(history.bound((&up, &down), (1, 10), 5, 1, start + Duration::from_secs(62)).replicas, 5);
}

#[test]
fn metrics_are_read() {
    let listed: PodMetricsList = serde_json::from_value(json!({ "items": [{
        "metadata": { "name": "a", "namespace": "n" }, "timestamp": "2026-01-01T00:00:00Z", "window": "10.250s",
        "containers": [{ "name": "c", "usage": { "cpu": "250000000n", "memory": "2Ki" } }, { "name": "d", "usage": { "cpu": "1" } }],
    }] })).unwrap();
    let all = listed.used("cpu", None);
    assert_eq!((all["a"].milli, all["a"].window), (1250, 10));
    assert_eq!(listed.used("cpu", Some("c"))["a"].milli, 250);
    let spec = |value: Value| serde_json::from_value(value).unwrap();
    let cpu = spec(
        json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 50 } } }),
    );
    assert_eq!(wanted(&cpu).unwrap().target, Target::Utilization(50));
    let external = spec(
        json!({ "type": "External", "external": { "metric": { "name": "q" }, "target": { "type": "Value" } } }),
    );
    assert_eq!(wanted(&external).unwrap_err().0, "InvalidMetricSourceType");
}

#[test]
fn values_of_objects_and_of_the_outside_decide() {
    let near = (0.1, 0.1);
    // 30 requests a second where 10 are wanted, three ready pods: nine.
    assert_eq!(by_value(30_000, 10_000, 3, 3, near), 9);
    assert_eq!(by_value(10_500, 10_000, 3, 3, near), 3, "near enough");
    assert_eq!(by_value(30_000, 10_000, 0, 0, near), 3, "from none");
    // 100 messages, 25 a pod: four, however many there are.
    assert_eq!(by_average(100_000, 25_000, 2, near), 4);
    assert_eq!(by_average(52_000, 25_000, 2, near), 2, "near enough");
    assert_eq!(by_average(100_000, 25_000, 0, near), 4);
}

#[test]
fn metrics_of_pods_are_asked_for_by_name_and_selector() {
    let metric = serde_json::from_value(
        json!({ "name": "requests", "selector": { "matchLabels": { "verb": "GET" } } }),
    )
    .unwrap();
    assert_eq!(
        custom::path("default", "pods/*", &metric, Some("app=web")),
        "/namespaces/default/pods/*/requests?labelSelector=app%3Dweb&metricLabelSelector=verb%3DGET"
    );
    let bare = serde_json::from_value(json!({ "name": "hits" })).unwrap();
    assert_eq!(custom::path("", "nodes/n1", &bare, None), "/nodes/n1/hits");
    let values: Values = serde_json::from_value(json!({ "items": [
        { "describedObject": { "kind": "Pod", "name": "a" }, "timestamp": "2026-01-01T00:00:00Z", "value": "1500m" },
        { "describedObject": { "kind": "Pod", "name": "b" }, "timestamp": "2026-01-01T00:00:00Z", "value": "2" },
    ] }))
    .unwrap();
    let now = Timestamp::from_second(NOW).unwrap();
    let used = values.by_pod(now);
    assert_eq!((used["a"].milli, used["b"].milli, values.sum()), (1500, 2000, Some(3500)));
    assert_eq!(Values::default().sum(), None);
    let pods = [pod("a", json!({})), pod("b", json!({}))];
    let state = State { pods: &pods, used: &used, resource: "", container: None, tolerance: (0.1, 0.1), now };
    assert_eq!(replicas(&state, Target::AverageValue(500), 2).unwrap().replicas, 7);
}
