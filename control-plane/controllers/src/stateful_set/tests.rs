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

#[test]
fn on_delete_replaces_nothing_by_itself() {
    let manual = set(json!({ "updateStrategy": { "type": "OnDelete", "rollingUpdate": null } }));
    let old = [pod(0, "old", true), pod(1, "old", true), pod(2, "old", true)];
    assert!(run(&manual, &old).0.is_empty());
    assert_eq!(names(&run(&manual, &old[..2]).0), ["+2"], "what somebody deleted comes back new");
}

#[test]
fn ordinals_begin_where_the_set_says() {
    let shifted = set(json!({ "ordinals": { "start": 5 }, "replicas": 2 }));
    assert_eq!(names(&run(&shifted, &[]).0), ["+5"]);
    let all = [pod(5, "new", true), pod(6, "new", true), pod(0, "new", true)];
    assert_eq!(names(&run(&shifted, &all).0), ["-web-0"]);
    let part = set(
        json!({ "ordinals": { "start": 5 }, "replicas": 2, "updateStrategy": { "rollingUpdate": { "partition": 1 } } }),
    );
    assert_eq!(names(&run(&part, &[pod(5, "old", true), pod(6, "old", true)]).0), ["~web-6"]);
}

#[test]
fn claims_go_with_the_set_or_the_pod_as_the_policy_says_now() {
    let with = |deleted: &str, scaled: &str| {
        set(
            json!({ "persistentVolumeClaimRetentionPolicy": { "whenDeleted": deleted, "whenScaled": scaled } }),
        )
    };
    let kinds = |set: &StatefulSet, there: Value, condemned: Option<(&str, &str)>| {
        let there: Vec<_> = serde_json::from_value(there).unwrap();
        let owners = identity::owners(set, &there, condemned)?;
        Some(owners.into_iter().map(|o| o.kind).collect::<Vec<_>>())
    };
    let of_set = json!([{ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "set" }]);
    let other = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x" }]);
    assert_eq!(kinds(&with("Retain", "Retain"), json!([]), None), None);
    assert_eq!(kinds(&with("Delete", "Retain"), json!([]), None).unwrap(), ["StatefulSet"]);
    assert_eq!(kinds(&with("Delete", "Retain"), of_set.clone(), None), None, "nothing twice");
    assert!(kinds(&with("Retain", "Retain"), of_set.clone(), None).unwrap().is_empty(), "the policy changed");
    let gone = Some(("web-2", "u2"));
    assert_eq!(kinds(&with("Delete", "Delete"), of_set, gone).unwrap(), ["Pod"]);
    assert_eq!(kinds(&with("Retain", "Retain"), other.clone(), gone), None, "a stranger's stays");
    assert_eq!(kinds(&with("Delete", "Retain"), other, gone).unwrap(), ["ConfigMap", "StatefulSet"]);
}
