//! Pods against nodes.

mod neighbours;
mod volumes;

use super::{Choice, PodView, Profile, Snapshot, World};
use crate::plugins::resources_fit::{FitArgs, Strategy};
use crate::preemption::preempt;
use crate::view::{NodeView, Pod};
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

/// The node, or why there is none.
fn choose(pod: &PodView, snapshot: &Snapshot) -> Result<String, String> {
    match super::choose(pod, &Profile::default(), snapshot, &World::default(), 0) {
        Choice::Node(node) => Ok(node),
        Choice::None { why, .. } => Err(why),
    }
}

fn node(name: &str, extra: Value) -> NodeView {
    let mut value = json!({
        "metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": {},
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "2"}},
    });
    for (key, part) in extra.as_object().into_iter().flatten() {
        value["spec"][key] = part.clone();
    }
    NodeView::of(&serde_json::from_value::<Node>(value).unwrap())
}

fn pod(spec: Value) -> PodView {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "a"}]);
    }
    PodView::of(&serde_json::from_value::<Pod>(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap())
}

fn snapshot(nodes: Vec<NodeView>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in nodes {
        snapshot.set_node(node);
    }
    snapshot
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": amount}}}]})
}

/// A pod with labels, on a node unless that is empty.
fn named(name: &str, labels: Value, spec: Value) -> PodView {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "a"}]);
    let pod = json!({"metadata": {"name": name, "namespace": "n", "labels": labels}, "spec": spec});
    PodView::of(&serde_json::from_value::<Pod>(pod).unwrap())
}

fn zones() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a", "east"), ("b", "east"), ("c", "west")] {
        let mut node = node(name, json!({}));
        node.allocatable.insert("pods".into(), 100);
        node.labels = [("zone", zone), ("kubernetes.io/hostname", name)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        snapshot.set_node(node);
    }
    snapshot
}

#[test]
fn reasons_are_in_the_words_that_users_search_for() {
    let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
    let all =
        snapshot(vec![node("a", json!({})), node("b", json!({"unschedulable": true})), node("c", tainted)]);
    assert_eq!(
        choose(&pod(cpu("3")), &all).unwrap_err(),
        "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {gpu: yes}, 1 node(s) were unschedulable."
    );
    assert_eq!(choose(&pod(cpu("1")), &all).unwrap(), "a");
    let picky = pod(json!({"nodeSelector": {"disk": "tape"}}));
    assert!(
        choose(&picky, &all).unwrap_err().contains("1 node(s) didn't match Pod's node affinity/selector")
    );
    assert_eq!(choose(&picky, &Snapshot::default()).unwrap_err(), "no nodes available to schedule pods");
}

#[test]
fn pods_spread_and_fill_up() {
    let mut all = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
    let one = pod(cpu("500m"));
    let mut taken = Vec::new();
    for _ in 0..4 {
        let name = choose(&one, &all).unwrap();
        let placed = PodView { name: format!("p{}", taken.len()), ..one.clone() };
        all.take(&name, &placed.into());
        taken.push(name);
    }
    assert_eq!(taken, ["a", "b", "a", "b"]);
    assert_eq!(choose(&one, &all).unwrap_err(), "0/2 nodes are available: 2 Too many pods.");
    all.give_back("b", &PodView { name: "p1".into(), ..one.clone() });
    assert_eq!(choose(&one, &all).unwrap(), "b");
}

#[test]
fn a_node_that_is_gone_is_forgotten_with_its_last_pod() {
    let mut all = snapshot(vec![node("a", json!({}))]);
    let one = pod(cpu("1"));
    all.take("a", &one.clone().into());
    all.remove_node("a");
    assert!(choose(&one, &all).is_err());
    all.set_node(node("a", json!({})));
    assert!(choose(&pod(cpu("1500m")), &all).is_err(), "its pod still takes room");
    all.remove_node("a");
    all.give_back("a", &one);
    assert!(all.rooms.is_empty());
}

#[test]
fn replicas_without_requests_spread_over_large_nodes() {
    let large = |name: &str| {
        let mut node = node(name, json!({}));
        node.allocatable.insert("pods".into(), 1000);
        node
    };
    let mut all = snapshot(vec![large("a"), large("b")]);
    let one = pod(json!({}));
    let mut taken = Vec::new();
    for _ in 0..4 {
        let name = choose(&one, &all).unwrap();
        let placed = PodView { name: format!("p{}", taken.len()), ..one.clone() };
        all.take(&name, &placed.into());
        taken.push(name);
    }
    assert_eq!(taken, ["a", "b", "a", "b"]);
}

#[test]
fn extended_resources_are_counted() {
    let mut all = Snapshot::default();
    let mut gpu = node("a", json!({}));
    gpu.allocatable.insert("nvidia.com/gpu".into(), 1);
    all.set_node(gpu);
    let one = pod(
        json!({"containers": [{"name": "a", "resources": {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}}]}),
    );
    assert_eq!(choose(&one, &all).unwrap(), "a");
    all.take("a", &one.clone().into());
    let second = PodView { name: "q".into(), ..one };
    assert_eq!(choose(&second, &all).unwrap_err(), "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.");
}

#[test]
fn the_least_important_make_room() {
    let mut all = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
    let on = |name: &str, priority: i32| PodView {
        name: name.into(),
        priority,
        uid: name.into(),
        ..pod(cpu("2"))
    };
    all.take("a", &on("low", 1).into());
    all.take("b", &on("mid", 5).into());
    let world = World::default();
    let (profile, high) = (Profile::default(), PodView { preempts: true, ..on("high", 10) });
    let Choice::None { curable, nodes, .. } = super::choose(&high, &profile, &all, &world, 0) else {
        panic!("no room")
    };
    let found = preempt(&high, &profile, &curable, nodes, &all, &world).unwrap();
    assert_eq!((found.node.as_str(), found.victims.len()), ("a", 1));
    // The room that is made is not another's.
    all.nominate("a", &high.clone().into());
    all.give_back("a", &on("low", 1));
    assert!(choose(&on("late", 1), &all).is_err());
    assert_eq!(choose(&high, &all).unwrap(), "a");
    let equal = PodView { preempts: true, ..on("equal", 1) };
    let why = preempt(&equal, &profile, &curable, nodes, &all, &world).unwrap_err();
    assert_eq!(why, "0/2 nodes are available: 2 No preemption victims found for incoming pod.");
}

#[test]
fn tolerations_and_affinity() {
    let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
    let all = snapshot(vec![node("c", tainted)]);
    for (toleration, fits) in [
        (json!({"key": "gpu", "operator": "Exists"}), true),
        (json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"}), true),
        (json!({"key": "gpu", "value": "no"}), false),
        (json!({"operator": "Exists"}), true),
    ] {
        assert_eq!(choose(&pod(json!({"tolerations": [toleration]})), &all).is_ok(), fits, "{toleration}");
    }
    let all = snapshot(vec![node("a", json!({}))]);
    for (operator, values, fits) in [
        ("In", json!(["ssd"]), true),
        ("NotIn", json!(["ssd"]), false),
        ("Exists", json!([]), true),
        ("DoesNotExist", json!([]), false),
    ] {
        let term = json!({"matchExpressions": [{"key": "disk", "operator": operator, "values": values}]});
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
        assert_eq!(choose(&pod(json!({"affinity": affinity})), &all).is_ok(), fits, "{operator}");
    }
}

fn with(profile: &Profile, pod: &PodView, snapshot: &Snapshot, world: &World) -> String {
    match super::choose(pod, profile, snapshot, world, 0) {
        Choice::Node(node) => node,
        Choice::None { why, .. } => why,
    }
}

#[test]
fn profiles_pack_spread_or_follow_a_curve() {
    let mut all = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
    all.take("a", &PodView { name: "there".into(), ..pod(cpu("500m")) }.into());
    let one = pod(cpu("500m"));
    let by = |strategy: Strategy| {
        let mut profile = Profile::default();
        profile.fit = FitArgs { strategy, resources: vec![("cpu".into(), 1)] };
        profile
    };
    let mut packed = by(Strategy::MostAllocated);
    packed.disable_score("NodeResourcesBalancedAllocation");
    assert_eq!(with(&packed, &one, &all, &World::default()), "a");
    assert_eq!(with(&by(Strategy::LeastAllocated), &one, &all, &World::default()), "b");
    let mut curve = by(Strategy::RequestedToCapacityRatio(vec![(0, 0), (50, 10), (100, 0)]));
    curve.disable_score("NodeResourcesBalancedAllocation");
    assert_eq!(with(&curve, &one, &all, &World::default()), "a", "half full is best");
}

#[test]
fn processor_and_memory_are_used_up_evenly() {
    let mut all = snapshot(vec![node("a", json!({})), node("b", json!({}))]);
    let asks = |cpu: &str, memory: &str| {
        pod(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]}))
    };
    // Both nodes are used alike in sum; memory is left where the pod needs it.
    all.take("a", &PodView { name: "x".into(), ..asks("1", "100Mi") }.into());
    all.take("b", &PodView { name: "y".into(), ..asks("50m", "2Gi") }.into());
    let mut only = Profile::default();
    only.disable_score("*");
    only.enable_score(
        crate::plugins::PLUGINS.iter().find(|p| p.name == "NodeResourcesBalancedAllocation").unwrap(),
        None,
    );
    assert_eq!(with(&only, &asks("50m", "1Gi"), &all, &World::default()), "a");
    assert_eq!(with(&only, &asks("1", "10Mi"), &all, &World::default()), "b");
}

#[test]
fn nodes_that_have_the_image_are_preferred() {
    let mut has = node("b", json!({}));
    has.images = [("registry/big:v1".to_owned(), 800 * 1024 * 1024)].into();
    let all = snapshot(vec![node("a", json!({})), has]);
    let of = |image: &str| pod(json!({"containers": [{"name": "a", "image": image}]}));
    assert_eq!(with(&Profile::default(), &of("registry/big:v1"), &all, &World::default()), "b");
    assert_eq!(with(&Profile::default(), &of("registry/other"), &all, &World::default()), "a");
    assert_eq!(of("registry:5000/other").images, ["registry:5000/other:latest"]);
}

#[test]
fn a_host_port_is_taken_on_its_address_or_on_all() {
    let port = |ip: &str| {
        pod(
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]}),
        )
    };
    let mut all = snapshot(vec![node("a", json!({}))]);
    all.take("a", &PodView { name: "there".into(), ..port("127.0.0.1") }.into());
    assert_eq!(choose(&port("127.0.0.2"), &all).unwrap(), "a");
    for ip in ["127.0.0.1", "0.0.0.0", ""] {
        let why = choose(&port(ip), &all).unwrap_err();
        assert_eq!(
            why, "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
            "{ip}"
        );
    }
}
