//! Pods against nodes.

use super::{Choice, NodeView, PodView, Snapshot, World};
use crate::preemption::preempt;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// The node, or why there is none.
fn choose(pod: &PodView, snapshot: &Snapshot) -> Result<String, String> {
    match super::choose(pod, snapshot, &World::default()) {
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

fn term(app: &str, topology: &str) -> Value {
    json!({"topologyKey": topology, "labelSelector": {"matchLabels": {"app": app}}})
}

#[test]
fn pods_near_to_and_far_from_others() {
    let mut all = zones();
    let required = |term: Value| json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]});
    let near = |labels: Value| {
        named("near", labels, json!({"affinity": {"podAffinity": required(term("db", "zone"))}}))
    };
    assert_eq!(
        choose(&near(json!({})), &all).unwrap_err(),
        "0/3 nodes are available: 3 node(s) didn't match pod affinity rules."
    );
    assert!(choose(&near(json!({"app": "db"})), &all).is_ok(), "the first of its kind may go anywhere");
    all.take("c", &named("db", json!({"app": "db"}), json!({})).into());
    assert_eq!(choose(&near(json!({})), &all).unwrap(), "c");
    let far = named(
        "far",
        json!({"app": "db"}),
        json!({"affinity": {"podAntiAffinity": required(term("db", "zone"))}}),
    );
    assert_ne!(choose(&far, &all).unwrap(), "c");
    // What is there keeps others away, too.
    let mut all = zones();
    let hermit = json!({"affinity": {"podAntiAffinity": required(term("web", "zone"))}});
    all.take("a", &named("hermit", json!({}), hermit).into());
    let web = named("web", json!({"app": "web"}), json!({}));
    assert_eq!(choose(&web, &all).unwrap(), "c");
    let mut tied = web;
    tied.node_selector = [("zone".to_owned(), "east".to_owned())].into();
    let why = choose(&tied, &all).unwrap_err();
    assert!(why.contains("2 node(s) didn't satisfy existing pods anti-affinity rules"), "{why}");
}

#[test]
fn preferences_choose_among_nodes_that_fit() {
    let mut all = zones();
    all.take("c", &named("db", json!({"app": "db"}), json!({})).into());
    let preferred = |kind: &str| {
        let one = json!({"weight": 100, "podAffinityTerm": term("db", "zone")});
        let terms = json!({"preferredDuringSchedulingIgnoredDuringExecution": [one]});
        choose(&named("p", json!({}), json!({"affinity": {kind: terms}})), &all).unwrap()
    };
    assert_eq!(preferred("podAffinity"), "c");
    assert_ne!(preferred("podAntiAffinity"), "c");
    let one = json!({"weight": 1, "preference": {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}});
    let affinity = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [one]}});
    assert_eq!(choose(&named("p", json!({}), json!({"affinity": affinity})), &all).unwrap(), "b");
}

#[test]
fn pods_spread_over_zones() {
    let mut all = zones();
    let web = |name: &str| {
        let one = json!({"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}});
        named(name, json!({"app": "web"}), json!({"topologySpreadConstraints": [one]}))
    };
    let zone = |node: &str| if node == "c" { "west" } else { "east" };
    let mut counts = std::collections::BTreeMap::new();
    for n in 0..6 {
        let pod = web(&format!("w{n}"));
        let name = choose(&pod, &all).unwrap();
        *counts.entry(zone(&name)).or_insert(0) += 1;
        all.take(&name, &pod.into());
    }
    assert_eq!(counts, [("east", 3), ("west", 3)].into());
    all.take("a", &web("extra").into());
    let mut tied = web("tied");
    tied.node_selector = [("kubernetes.io/hostname".to_owned(), "a".to_owned())].into();
    // Only nodes that it selects count as domains.
    assert_eq!(choose(&tied, &all).unwrap(), "a");
    let mut all = zones();
    all.take("a", &web("w").into());
    all.remove_node("c");
    all.set_node(node("c", json!({})));
    let why = choose(&web("w2"), &all);
    assert!(why.is_ok(), "a node without the label is no domain: {why:?}");
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
    let high = PodView { preempts: true, ..on("high", 10) };
    let Choice::None { curable, nodes, .. } = super::choose(&high, &all, &world) else { panic!("no room") };
    let found = preempt(&high, &curable, nodes, &all, &world).unwrap();
    assert_eq!((found.node.as_str(), found.victims.len()), ("a", 1));
    // The room that is made is not another's.
    all.nominate("a", &high.clone().into());
    all.give_back("a", &on("low", 1));
    assert!(choose(&on("late", 1), &all).is_err());
    assert_eq!(choose(&high, &all).unwrap(), "a");
    let equal = PodView { preempts: true, ..on("equal", 1) };
    let why = preempt(&equal, &curable, nodes, &all, &world).unwrap_err();
    assert_eq!(why, "0/2 nodes are available: 2 No preemption victims found for incoming pod.");
}

#[test]
fn claims_decide_where_a_pod_may_be() {
    let all = zones();
    let world = World::default();
    let pod = named(
        "p",
        json!({}),
        json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}),
    );
    let try_it = |world: &World| match super::choose(&pod, &all, world) {
        Choice::Node(node) => Ok(node),
        Choice::None { why, .. } => Err(why),
    };
    assert_eq!(
        try_it(&world).unwrap_err(),
        "0/3 nodes are available: persistentvolumeclaim \"data\" not found."
    );
    let claim = |spec: Value, annotations: Value| {
        let claim =
            json!({"metadata": {"name": "data", "namespace": "n", "annotations": annotations}, "spec": spec});
        serde_json::from_value(claim).unwrap()
    };
    world.claims.apply(claim(json!({"storageClassName": "local"}), json!({})));
    assert!(try_it(&world).unwrap_err().contains("pod has unbound immediate PersistentVolumeClaims"));
    let class = json!({"metadata": {"name": "local"}, "provisioner": "coracle.dev/local", "volumeBindingMode": "WaitForFirstConsumer"});
    world.classes.apply(serde_json::from_value(class).unwrap());
    assert!(try_it(&world).is_ok());
    let selected = json!({"volume.kubernetes.io/selected-node": "b"});
    world.claims.apply(claim(json!({"storageClassName": "local"}), selected));
    assert_eq!(try_it(&world).unwrap(), "b");
    let terms =
        json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["c"]}]}]);
    let volume = json!({"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}});
    world.volumes.apply(serde_json::from_value(volume).unwrap());
    world.claims.apply(claim(json!({"volumeName": "v"}), json!({"pv.kubernetes.io/bind-completed": "yes"})));
    assert_eq!(try_it(&world).unwrap(), "c");
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
