//! Plans of EndpointSlices.

use std::sync::Arc;

use serde_json::{Value, json};

use super::plan::{Action, plan};
use super::topology::Zones;
use crate::view::{EndpointSlice, Pod, Service};

fn service(change: Value) -> Service {
    let mut service = json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "svc" },
        "spec": { "selector": { "app": "web" }, "clusterIP": "127.96.0.9", "ports": [{ "port": 80, "targetPort": "http" }] },
    });
    json_patch::merge(&mut service, &change);
    serde_json::from_value(service).unwrap()
}

fn pod(i: usize, change: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": { "name": format!("p{i}"), "namespace": "default", "uid": format!("u{i}") },
        "spec": { "nodeName": "n", "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
        "status": { "phase": "Running", "podIP": format!("127.64.{}.{}", i / 250, i % 250 + 2),
                    "conditions": [{ "type": "Ready", "status": "True" }] },
    });
    json_patch::merge(&mut pod, &change);
    Arc::new(serde_json::from_value(pod).unwrap())
}

// What the API server would have after the actions.
fn after(slices: Vec<Arc<EndpointSlice>>, actions: &[Action]) -> Vec<Arc<EndpointSlice>> {
    let mut slices = slices;
    for action in actions {
        match action {
            Action::Create(slice) => {
                let mut slice = slice.as_ref().clone();
                slice.metadata.name = Some(format!("web-{}", slices.len()));
                slices.push(Arc::new(slice));
            }
            Action::Update(slice) => {
                slices.retain(|s| s.metadata.name != slice.metadata.name);
                slices.push(Arc::new(slice.as_ref().clone()));
            }
            Action::Delete(name, _) => slices.retain(|s| s.metadata.name.as_ref() != Some(name)),
        }
    }
    slices
}

fn made(action: &Action) -> &EndpointSlice {
    match action {
        Action::Create(slice) | Action::Update(slice) => slice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn headless() {
    let service = service(json!({ "spec": { "clusterIP": "None" } }));
    let pod = pod(0, json!({ "spec": { "hostname": "db-0", "subdomain": "web" } }));
    let actions = plan(&service, &[pod], &[], &Zones::default());
    let slice = made(&actions[0]);
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(labels.get("service.kubernetes.io/headless").map(String::as_str), Some(""));
    assert_eq!(slice.endpoints[0].hostname.as_deref(), Some("db-0"), "its name in the DNS");
    let with_address = plan(&self::service(json!({})), &[], &[], &Zones::default());
    assert!(
        with_address.iter().all(|a| !made(a)
            .metadata
            .labels
            .as_ref()
            .unwrap()
            .contains_key("service.kubernetes.io/headless"))
    );
}

#[test]
fn one_ready_pod() {
    let actions = plan(&service(json!({})), &[pod(0, json!({}))], &[], &Zones::default());
    assert_eq!(actions.len(), 1);
    let slice = serde_json::to_value(made(&actions[0])).unwrap();
    assert_eq!(slice["metadata"]["generateName"], "web-");
    assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "web");
    assert_eq!(
        slice["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(slice["ports"], json!([{ "name": "", "protocol": "TCP", "port": 8080 }]));
    let endpoint = json!({
        "addresses": ["127.64.0.2"], "conditions": { "ready": true, "serving": true, "terminating": false }, "nodeName": "n",
        "targetRef": { "kind": "Pod", "namespace": "default", "name": "p0", "uid": "u0" },
    });
    assert_eq!(slice["endpoints"], json!([endpoint]));
    let slices = after(Vec::new(), &actions);
    assert_eq!(
        plan(&service(json!({})), &[pod(0, json!({}))], &slices, &Zones::default()),
        [],
        "nothing to do twice"
    );
}

#[test]
fn conditions() {
    let not_ready = json!({ "status": { "conditions": null } });
    let terminating = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let publish = json!({ "spec": { "publishNotReadyAddresses": true } });
    let cases = [
        (json!({}), json!({}), (true, true, false)),
        (json!({}), not_ready.clone(), (false, false, false)),
        (json!({}), terminating.clone(), (false, true, true)),
        (publish.clone(), not_ready, (true, false, false)),
        (publish, terminating, (true, true, true)),
    ];
    for (s, p, (ready, serving, is_terminating)) in cases {
        let actions = plan(&service(s), &[pod(0, p)], &[], &Zones::default());
        let found = made(&actions[0]).endpoints[0].conditions;
        assert_eq!(
            (found.ready, found.serving, found.terminating),
            (Some(ready), Some(serving), Some(is_terminating))
        );
    }
    for gone in [json!({ "status": { "phase": "Succeeded" } }), json!({ "status": { "podIP": null } })] {
        let actions = plan(&service(json!({})), &[pod(0, gone)], &[], &Zones::default());
        assert!(made(&actions[0]).endpoints.is_empty());
    }
}

#[test]
fn slices_hold_a_hundred_and_change_little() {
    let pods: Vec<_> = (0..250).map(|i| pod(i, json!({}))).collect();
    let slices = after(Vec::new(), &plan(&service(json!({})), &pods, &[], &Zones::default()));
    let sizes = |slices: &[Arc<EndpointSlice>]| {
        let mut sizes: Vec<usize> = slices.iter().map(|s| s.endpoints.len()).collect();
        sizes.sort();
        sizes
    };
    assert_eq!(sizes(&slices), [50, 100, 100]);
    // One pod fewer, then one more: one write each.
    let fewer = plan(&service(json!({})), &pods[1..], &slices, &Zones::default());
    assert_eq!(fewer.len(), 1);
    let slices = after(slices, &fewer);
    let mut more = pods[1..].to_vec();
    more.push(pod(300, json!({})));
    let actions = plan(&service(json!({})), &more, &slices, &Zones::default());
    assert_eq!(actions.len(), 1);
    let slices = after(slices, &actions);
    assert_eq!(slices.iter().map(|s| s.endpoints.len()).sum::<usize>(), 250);
    let actions = plan(&service(json!({})), &[], &slices, &Zones::default());
    let slices = after(slices, &actions);
    assert_eq!(sizes(&slices), [0], "one empty slice stays");
    assert_eq!(plan(&service(json!({})), &[], &slices, &Zones::default()), []);
}

#[test]
fn hints_follow_zones() {
    let node = |name: &str, zone: &str| {
        let value = json!({
            "metadata": { "name": name, "labels": { "topology.kubernetes.io/zone": zone } },
            "status": { "allocatable": { "cpu": "4" }, "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        Arc::new(serde_json::from_value(value).unwrap())
    };
    let zones = Zones::of_nodes(&[node("a", "east"), node("b", "west")]);
    let on = |node: &str, i: usize| pod(i, json!({ "spec": { "nodeName": node } }));
    let run = |service: &Service, pods: &[Arc<Pod>]| -> Vec<(Option<String>, Option<String>)> {
        let actions = plan(service, pods, &[], &zones);
        let hint = |e: &crate::view::Endpoint| Some(e.hints.as_ref()?.for_zones.first()?.name.clone());
        made(&actions[0]).endpoints.iter().map(|e| (e.zone.clone(), hint(e))).collect()
    };
    let some = |text: &str| Some(text.to_string());
    let pods = [on("a", 0), on("a", 1), on("a", 2), on("b", 3)];
    let plain = run(&service(json!({})), &pods);
    assert_eq!(plain[0], (some("east"), None), "zones always, hints only where asked for");
    let close = run(&service(json!({ "spec": { "trafficDistribution": "PreferClose" } })), &pods);
    assert_eq!(close[3], (some("west"), some("west")));
    let auto =
        service(json!({ "metadata": { "annotations": { "service.kubernetes.io/topology-mode": "Auto" } } }));
    let shared = run(&auto, &pods);
    let west = shared.iter().filter(|(_, hint)| *hint == some("west")).count();
    assert_eq!(west, 2, "half of the CPU, half of the endpoints: {shared:?}");
    assert!(run(&auto, &pods[..1]).iter().all(|(_, hint)| hint.is_none()), "too few for two zones");
}
