//! Decisions on small clusters.

use std::sync::Arc;

use coracle_controllers::view::{Node, Pod};
use serde_json::{Value, json};

use crate::cycle::decide;
use crate::demand::Demand;
use crate::queue::Queue;
use crate::snapshot::Snapshot;

fn node(name: &str, change: Value) -> Arc<Node> {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } }, "spec": {},
        "status": { "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "10" } },
    });
    json_patch::merge(&mut node, &change);
    Arc::new(serde_json::from_value(node).unwrap())
}

fn pod(name: &str, change: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [{ "name": "c" }] },
    });
    json_patch::merge(&mut pod, &change);
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn cluster(nodes: impl IntoIterator<Item = Arc<Node>>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    nodes.into_iter().for_each(|n| snapshot.set_node(n));
    snapshot
}

fn cpu(amount: &str) -> Value {
    json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": amount } } }] } })
}

fn place(snapshot: &Snapshot, pod: Arc<Pod>) -> Result<String, String> {
    decide(&Demand::new(pod), snapshot, 0)
}

#[test]
fn refusals_in_kubernetes_words() {
    let taint = json!({ "spec": { "taints": [{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }] } });
    let port = json!({ "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 80, "hostPort": 80 }] }] } });
    let cases = [
        (json!({}), cpu("3"), "1 Insufficient cpu."),
        (json!({ "spec": { "unschedulable": true } }), json!({}), "1 node(s) were unschedulable."),
        (taint, json!({}), "1 node(s) had untolerated taint(s)."),
        (json!({}), json!({ "spec": { "nodeSelector": { "disk": "ssd" } } }), "1 node(s) didn't match Pod's node affinity/selector."),
        (json!({}), json!({ "spec": { "nodeName": "b" } }), "1 node(s) didn't match the requested node name."),
        (json!({ "status": { "allocatable": { "pods": "0", "cpu": "0" } } }), cpu("1"), "1 Insufficient cpu, 1 Too many pods."),
    ];
    for (n, p, words) in cases {
        assert_eq!(place(&cluster([node("a", n)]), pod("p", p)), Err(format!("0/1 nodes are available: {words}")));
    }
    let mut snapshot = cluster([node("a", json!({}))]);
    snapshot.place(Demand::new(pod("other", port.clone())), "a");
    let words = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(place(&snapshot, pod("p", port)), Err(words.into()));
    assert_eq!(place(&cluster([]), pod("p", json!({}))), Err("no nodes available to schedule pods".into()));
    let both = cluster([node("a", json!({ "spec": { "unschedulable": true } })), node("b", json!({}))]);
    let words = "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable.";
    assert_eq!(place(&both, pod("p", cpu("3"))), Err(words.into()));
}

#[test]
fn affinity_and_tolerations() {
    let nodes = || cluster([node("a", json!({ "metadata": { "labels": { "cores": "4" } } })), node("b", json!({ "metadata": { "labels": { "cores": "16" } } }))]);
    let term = |r: Value| json!({ "spec": { "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [r] } } } } });
    let expression = |key: &str, op: &str, values: Value| term(json!({ "matchExpressions": [{ "key": key, "operator": op, "values": values }] }));
    assert_eq!(place(&nodes(), pod("p", expression("cores", "Gt", json!(["8"])))), Ok("b".into()));
    assert_eq!(place(&nodes(), pod("p", expression("cores", "In", json!(["4", "5"])))), Ok("a".into()));
    assert!(place(&nodes(), pod("p", expression("disk", "Exists", json!([])))).is_err());
    let field = term(json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["b"] }] }));
    assert_eq!(place(&nodes(), pod("p", field)), Ok("b".into()));
    assert!(place(&nodes(), pod("p", term(json!({})))).is_err(), "an empty term matches nothing");
    let preferred = json!({ "spec": { "affinity": { "nodeAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 10, "preference": { "matchExpressions": [{ "key": "cores", "operator": "In", "values": ["16"] }] } }] } } } });
    assert_eq!(place(&nodes(), pod("p", preferred)), Ok("b".into()));
    let tainted = || cluster([node("a", json!({ "spec": { "taints": [{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }] } }))]);
    for (toleration, fits) in [
        (json!({ "key": "gpu", "operator": "Exists" }), true),
        (json!({ "operator": "Exists" }), true),
        (json!({ "key": "gpu", "value": "yes", "effect": "NoSchedule" }), true),
        (json!({ "key": "gpu", "value": "no" }), false),
        (json!({ "key": "gpu", "operator": "Exists", "effect": "NoExecute" }), false),
    ] {
        let p = pod("p", json!({ "spec": { "tolerations": [toleration] } }));
        assert_eq!(place(&tainted(), p).is_ok(), fits, "{toleration}");
    }
}

#[test]
fn spreads_and_counts_what_it_decided() {
    let mut snapshot = cluster([node("a", json!({})), node("b", json!({}))]);
    let owner = json!({ "metadata": { "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true }] } });
    let mut counts = [0, 0];
    for i in 0..20 {
        let demand = Demand::new(pod(&format!("p{i}"), owner.clone()));
        let chosen = decide(&demand, &snapshot, i).unwrap();
        counts[usize::from(chosen == "b")] += 1;
        snapshot.place(demand, &chosen);
    }
    assert_eq!(counts, [10, 10]);
    assert_eq!(place(&snapshot, pod("p", json!({}))), Err("0/2 nodes are available: 2 Too many pods.".into()));
    assert!(snapshot.unplace("default/p3"));
    assert!(place(&snapshot, pod("p", json!({}))).is_ok());
}

#[test]
fn init_containers_and_sidecars() {
    let request = |cpu: &str| json!({ "requests": { "cpu": cpu } });
    let p = pod("p", json!({ "spec": {
        "initContainers": [
            { "name": "s", "restartPolicy": "Always", "resources": request("100m") },
            { "name": "i", "resources": request("2") },
        ],
        "containers": [{ "name": "a", "resources": request("1") }, { "name": "b", "resources": request("500m") }],
        "overhead": { "cpu": "10m" },
    } }));
    assert_eq!(Demand::new(p).requests.of("cpu"), 2110);
}

#[tokio::test]
async fn the_queue_orders_and_waits() {
    let mut queue = Queue::default();
    queue.add(pod("low", json!({})));
    queue.add(pod("high", json!({ "spec": { "priority": 1000 } })));
    let name = |p: Option<Arc<Pod>>| p.and_then(|p| p.metadata.name.clone());
    assert_eq!(name(queue.pop()).as_deref(), Some("high"));
    assert_eq!(name(queue.pop()).as_deref(), Some("low"));
    queue.unschedulable("default/low");
    assert!(queue.pop().is_none());
    queue.add(pod("low", json!({ "status": { "phase": "Pending" } })));
    assert!(queue.pop().is_none(), "a status change is no reason to try again");
    queue.wake_unschedulable();
    assert!(queue.pop().is_none(), "it pauses first");
    tokio::time::sleep_until(queue.next_wake().unwrap()).await;
    assert_eq!(name(queue.pop()).as_deref(), Some("low"));
    queue.remove("default/low");
    queue.wake_unschedulable();
    assert!(queue.pop().is_none());
}
