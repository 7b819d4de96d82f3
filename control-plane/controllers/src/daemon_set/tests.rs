//! Plans of DaemonSets.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::plan::{Plan, State, plan, pod as body, target};
use crate::view::{DaemonSet, Node, Pod};

const NOW: i64 = 1_700_000_000;

fn set(spec: Value) -> DaemonSet {
    let mut set = json!({
        "metadata": { "name": "agent", "namespace": "default", "uid": "set" },
        "spec": {
            "selector": { "matchLabels": { "app": "agent" } },
            "template": { "metadata": { "labels": { "app": "agent" } }, "spec": { "containers": [] } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } },
        },
    });
    json_patch::merge(&mut set, &json!({ "spec": spec }));
    serde_json::from_value(set).unwrap()
}

fn node(name: &str, spec: Value) -> Arc<Node> {
    let labels = json!({ "kubernetes.io/hostname": name, "disk": if name == "a" { "ssd" } else { "tape" } });
    Arc::new(
        serde_json::from_value(json!({ "metadata": { "name": name, "labels": labels }, "spec": spec }))
            .unwrap(),
    )
}

fn pod(node: &str, hash: &str, change: Value) -> Arc<Pod> {
    let since = crate::events::api_time(Timestamp::from_second(NOW - 60).unwrap());
    let mut pod = json!({
        "metadata": { "name": format!("agent-{node}-{hash}"), "namespace": "default", "uid": format!("{node}-{hash}"), "labels": { "app": "agent", "controller-revision-hash": hash } },
        "spec": { "nodeName": node },
        "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": since }] },
    });
    json_patch::merge(&mut pod, &change);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn run(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Plan {
    let now = Timestamp::from_second(NOW).unwrap();
    plan(&State { set, nodes, pods, hash: "new", settled: true, waiting: &HashSet::new(), now })
}

fn deleted(plan: &Plan) -> Vec<&str> {
    plan.deleted.iter().map(|(_, uid)| uid.as_str()).collect()
}

#[test]
fn one_pod_on_each_node_that_fits() {
    let taint = json!({ "taints": [{ "key": "gpu", "effect": "NoSchedule" }] });
    let nodes = [node("a", json!({})), node("b", taint), node("c", json!({ "unschedulable": true }))];
    let plan = run(&set(json!({})), &nodes, &[]);
    assert_eq!(plan.created, ["a", "c"], "cordoned nodes count, tainted ones do not");
    assert_eq!(plan.status.desired_number_scheduled, 2);
    let tolerant = json!({ "template": { "spec": { "tolerations": [{ "operator": "Exists" }] } } });
    assert_eq!(run(&set(tolerant), &nodes, &[]).created, ["a", "b", "c"]);
    let picky = set(json!({ "template": { "spec": { "nodeSelector": { "disk": "ssd" } } } }));
    let plan = run(&picky, &nodes, &[pod("c", "new", json!({}))]);
    assert_eq!(plan.created, ["a"]);
    assert_eq!(deleted(&plan), ["c-new"], "where it may not be, it goes");
    assert_eq!(plan.status.number_misscheduled, 1);
}

#[test]
fn its_pod_is_for_its_node_alone() {
    let made = body(&set(json!({})), "new", "a");
    let view: Pod = serde_json::from_value(made).unwrap();
    assert_eq!(target(&view).as_deref(), Some("a"));
    assert!(view.spec.tolerations.iter().any(|t| t.key.as_deref() == Some("node.kubernetes.io/unreachable")));
}

#[test]
fn failed_pods_are_replaced_and_doubles_removed() {
    let nodes = [node("a", json!({}))];
    let failed = pod("a", "new", json!({ "status": { "phase": "Failed" } }));
    let waiting = HashSet::from(["a".to_string()]);
    let now = Timestamp::from_second(NOW).unwrap();
    let pods = [failed.clone()];
    let later = super::plan::plan(&State {
        set: &set(json!({})),
        nodes: &nodes,
        pods: &pods,
        hash: "new",
        settled: true,
        waiting: &waiting,
        now,
    });
    assert!(later.deleted.is_empty() && later.created.is_empty(), "it stays for its pause");
    let plan = run(&set(json!({})), &nodes, &[failed]);
    assert_eq!((deleted(&plan), plan.failed.len(), plan.created.len()), (vec!["a-new"], 1, 0));
    let double = pod("a", "new", json!({ "metadata": { "uid": "second", "name": "z" } }));
    assert_eq!(deleted(&run(&set(json!({})), &nodes, &[pod("a", "new", json!({})), double])), ["second"]);
}

#[test]
fn updates_keep_to_the_limit() {
    let nodes = [node("a", json!({})), node("b", json!({})), node("c", json!({}))];
    let old: Vec<_> = ["a", "b", "c"].map(|n| pod(n, "old", json!({}))).to_vec();
    assert_eq!(deleted(&run(&set(json!({})), &nodes, &old)), ["a-old"]);
    let starting =
        pod("a", "new", json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } }));
    let mixed = [starting, old[1].clone(), old[2].clone()];
    assert!(run(&set(json!({})), &nodes, &mixed).deleted.is_empty());
    let leaving = pod("a", "old", json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } }));
    let plan = run(&set(json!({})), &nodes, &[leaving, old[1].clone(), old[2].clone()]);
    assert!(plan.created.is_empty() && plan.deleted.is_empty(), "two never run at once");
    assert!(run(&set(json!({ "updateStrategy": { "type": "OnDelete" } })), &nodes, &old).deleted.is_empty());
}

#[test]
fn with_surge_the_new_pod_comes_first() {
    let surging =
        set(json!({ "updateStrategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } } }));
    let nodes = [node("a", json!({})), node("b", json!({}))];
    let old: Vec<_> = ["a", "b"].map(|n| pod(n, "old", json!({}))).to_vec();
    let plan = run(&surging, &nodes, &old);
    assert_eq!((plan.created, plan.deleted.len()), (vec!["a".to_string()], 0));
    let both = [old[0].clone(), old[1].clone(), pod("a", "new", json!({}))];
    let plan = run(&surging, &nodes, &both);
    assert_eq!(deleted(&plan), ["a-old"]);
}
