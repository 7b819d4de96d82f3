//! Plans of StatefulSets.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::identity;
use super::plan::{Action, State, plan};
use crate::view::{Pod, StatefulSet, StatefulSetStatus};

const NOW: i64 = 1_700_000_000;

fn set(spec: Value) -> StatefulSet {
    let mut set = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "set", "generation": 2 },
        "spec": {
            "replicas": 3, "serviceName": "web", "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [] } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
        },
    });
    json_patch::merge(&mut set, &json!({ "spec": spec }));
    serde_json::from_value(set).unwrap()
}

fn pod(ordinal: i64, revision: &str, ready: bool) -> Arc<Pod> {
    let status = if ready { "True" } else { "False" };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("web-{ordinal}"), "namespace": "default", "uid": format!("u{ordinal}"),
                "labels": { "app": "web", "controller-revision-hash": revision },
            },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": status, "lastTransitionTime": crate::events::api_time(Timestamp::from_second(NOW - 60).unwrap()) }] },
        }))
        .unwrap(),
    )
}

fn run(set: &StatefulSet, pods: &[Arc<Pod>]) -> (Vec<Action>, StatefulSetStatus) {
    let now = Timestamp::from_second(NOW).unwrap();
    let (actions, status, _) = plan(&State { set, pods, current: "old", update: "new", now });
    (actions, status)
}

fn names(actions: &[Action]) -> Vec<String> {
    let name = |action: &Action| match action {
        Action::Create { ordinal, update } => format!("+{ordinal}{}", if *update { "" } else { " old" }),
        Action::Replace((name, _)) => format!("~{name}"),
        Action::ScaleDown((name, _)) => format!("-{name}"),
    };
    actions.iter().map(name).collect()
}

#[test]
fn in_order_each_waits_for_the_one_before() {
    let ordered = set(json!({}));
    assert_eq!(names(&run(&ordered, &[]).0), ["+0"]);
    assert!(run(&ordered, &[pod(0, "new", false)]).0.is_empty());
    assert_eq!(names(&run(&ordered, &[pod(0, "new", true)]).0), ["+1"]);
    let parallel = set(json!({ "podManagementPolicy": "Parallel", "ordinals": { "start": 5 } }));
    assert_eq!(names(&run(&parallel, &[]).0), ["+5", "+6", "+7"]);
}

#[test]
fn what_is_too_much_goes_from_the_top() {
    let small = set(json!({ "replicas": 1 }));
    let pods = [pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)];
    assert_eq!(names(&run(&small, &pods).0), ["-web-2"]);
    // Names that are not its own are left alone.
    assert_eq!(
        identity::ordinal(
            &small,
            &serde_json::from_value(json!({ "metadata": { "name": "web-01" } })).unwrap()
        ),
        None
    );
}

#[test]
fn updates_go_from_the_top_to_the_partition() {
    let pods = [pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)];
    assert_eq!(names(&run(&set(json!({})), &pods).0), ["~web-2"]);
    let waiting = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", false)];
    assert!(run(&set(json!({})), &waiting).0.is_empty());
    let half = set(json!({ "updateStrategy": { "rollingUpdate": { "partition": 2 } } }));
    let done = [pod(0, "old", true), pod(1, "old", true), pod(2, "new", true)];
    assert!(run(&half, &done).0.is_empty());
    assert_eq!(names(&run(&half, &done[1..]).0), ["+0 old"], "below the partition the old template is kept");
    let on_delete = set(json!({ "updateStrategy": { "type": "OnDelete" } }));
    assert!(run(&on_delete, &pods).0.is_empty());
}

#[test]
fn the_revision_is_current_when_all_have_it() {
    let pods = [pod(0, "new", true), pod(1, "new", true), pod(2, "new", true)];
    let status = run(&set(json!({})), &pods).1;
    assert_eq!(status.current_revision.as_deref(), Some("new"));
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (3, 3, 3));
    let status = run(&set(json!({})), &[pod(0, "old", true), pod(2, "new", true)]).1;
    assert_eq!(status.current_revision.as_deref(), Some("old"));
    assert_eq!((status.current_replicas, status.updated_replicas), (1, 1));
}

#[test]
fn a_pod_has_its_name_and_its_claims() {
    let templates = json!([{ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"] } }]);
    let set = set(json!({ "volumeClaimTemplates": templates }));
    let made = identity::pod(&set, &set.spec.template, "web-abc", 2);
    assert_eq!(made["metadata"]["name"], "web-2");
    assert_eq!(
        (made["spec"]["hostname"].as_str(), made["spec"]["subdomain"].as_str()),
        (Some("web-2"), Some("web"))
    );
    assert_eq!(made["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"], "web-2");
    assert_eq!(made["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-web-2");
    let claims = identity::claims(&set, 2);
    assert_eq!(claims[0].1["metadata"]["labels"]["app"], "web");
}
