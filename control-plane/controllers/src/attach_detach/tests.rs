//! Plans of attaching.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::{Action, Held, LONGEST_WAIT, NodeState, Wanted, plan, unique, uses};
use crate::view::{Node, Pod};

fn wanted(handle: &str, exclusive: bool) -> Wanted {
    Wanted {
        volume: format!("pv-{handle}"),
        driver: "d".into(),
        handle: handle.into(),
        exclusive,
        pods: Vec::new(),
    }
}

fn held(handle: &str, more: Value, unwanted: u64) -> Held {
    let mut meta = json!({ "name": wanted(handle, false).attachment("n"), "uid": handle });
    meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Held {
        object: Arc::new(serde_json::from_value(json!({ "metadata": meta })).unwrap()),
        unique: Some(unique("d", handle)),
        unwanted: Duration::from_secs(unwanted),
    }
}

fn node(ready: &str, in_use: &[&str], taints: Value) -> NodeState {
    let used: Vec<String> = in_use.iter().map(|h| unique("d", h)).collect();
    let node: Node =
        serde_json::from_value(json!({ "metadata": {}, "spec": { "taints": taints }, "status": {
        "conditions": [{ "type": "Ready", "status": ready }], "volumesInUse": used,
    } }))
        .unwrap();
    NodeState::of(Some(&node))
}

#[test]
fn what_pods_use_is_attached_once() {
    let state = node("True", &[], json!([]));
    let attach =
        |w: &Wanted| Action::Attach { name: w.attachment("n"), volume: w.volume.clone(), driver: "d".into() };
    let (a, b) = (wanted("a", true), wanted("b", false));
    let all = [a.clone(), b.clone()];
    assert_eq!(plan("n", &state, &all, &[], |_| None), [attach(&a), attach(&b)]);
    assert_eq!(plan("n", &state, &all, &[held("a", json!({}), 0)], |_| None), [attach(&b)]);
    // One that only one node may have waits for the other node; one that many may have does not.
    let elsewhere = |_: &str| Some(vec!["default/x".to_owned()]);
    let refused = Action::Refuse { volume: "pv-a".into(), users: vec!["default/x".into()] };
    assert_eq!(plan("n", &state, &all, &[], elsewhere), [refused, attach(&b)]);
}

#[test]
fn detached_when_unmounted_and_by_force_after_six_minutes() {
    let detach =
        |forced| vec![Action::Detach { name: wanted("a", true).attachment("n"), uid: "a".into(), forced }];
    let look =
        |state: &NodeState, seconds: u64| plan("n", state, &[], &[held("a", json!({}), seconds)], |_| None);
    assert_eq!(look(&node("True", &[], json!([])), 0), detach(false));
    // Still mounted: a healthy node unmounts by itself, however long it takes.
    assert_eq!(look(&node("True", &["a"], json!([])), 100_000), []);
    assert_eq!(look(&node("True", &["b"], json!([])), 0), detach(false));
    // One that is not healthy has six minutes; one that is out of service none.
    let silent = node("Unknown", &["a"], json!([]));
    assert_eq!(look(&silent, 300), [Action::Again(LONGEST_WAIT - Duration::from_secs(300))]);
    assert_eq!(look(&silent, 360), detach(true));
    let off = json!([{ "key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute" }]);
    assert_eq!(look(&node("Unknown", &["a"], off), 0), detach(true));
    // Of a node that is gone nobody knows what it has mounted.
    assert_eq!(look(&NodeState::of(None), 0), [Action::Again(LONGEST_WAIT)]);
    // One that is being deleted already is the attacher's business.
    let leaving = held("a", json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }), 0);
    assert_eq!(plan("n", &node("True", &[], json!([])), &[], &[leaving], |_| None), []);
    assert_eq!(node("True", &["a"], json!([])).in_use, Some(HashSet::from([unique("d", "a")])));
}

#[test]
fn pods_that_ended_use_nothing() {
    let pod = |meta: Value, status: Value| -> Pod {
        serde_json::from_value(json!({ "metadata": meta, "status": status })).unwrap()
    };
    let deleted = json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" });
    let ended = json!({ "containerStatuses": [{ "name": "c", "restartCount": 0, "state": { "terminated": { "exitCode": 0 } } }] });
    let runs =
        json!({ "containerStatuses": [{ "name": "c", "restartCount": 0, "state": { "running": {} } }] });
    assert!(uses(&pod(json!({}), json!({}))));
    assert!(uses(&pod(deleted.clone(), runs)));
    assert!(uses(&pod(json!({}), ended.clone())), "it may be started again");
    assert!(!uses(&pod(deleted, ended)));
    assert!(!uses(&pod(json!({}), json!({ "phase": "Succeeded" }))));
}
