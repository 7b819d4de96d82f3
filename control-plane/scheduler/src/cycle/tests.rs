//! Pods against nodes.

use super::{Choice, PodView, Profile, Snapshot, World};
use crate::plugins::resources_fit::{FitArgs, Strategy};
use crate::preemption::preempt;
use crate::view::NodeView;
use k8s_openapi::api::core::v1::{Node, Pod};
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
fn claims_decide_where_a_pod_may_be() {
    let all = zones();
    let world = World::default();
    let pod = named(
        "p",
        json!({}),
        json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]}),
    );
    let try_it = |world: &World| match super::choose(&pod, &Profile::default(), &all, world, 0) {
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

#[test]
fn wishes_of_both_sides_count() {
    let wish = |kind: &str, app: &str, more: Value| {
        let mut term = json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            term[key] = value.clone();
        }
        json!({"affinity": {kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}})
    };
    let web = || named("web", json!({"app": "web", "version": "2"}), json!({}));
    // The one that is there wants this one near, or far.
    for (kind, near) in [("podAffinity", true), ("podAntiAffinity", false)] {
        let mut all = zones();
        all.take("c", &named("cache", json!({"app": "cache"}), wish(kind, "web", json!({}))).into());
        assert_eq!(choose(&web(), &all).unwrap() == "c", near, "{kind}");
    }
    // Only pods with the same value of a label count.
    for (keys, near) in [
        (json!({}), true),
        (json!({"matchLabelKeys": ["version"]}), false),
        (json!({"mismatchLabelKeys": ["version"]}), true),
    ] {
        let mut all = zones();
        all.take("c", &named("web-1", json!({"app": "web", "version": "1"}), json!({})).into());
        let new =
            named("web", json!({"app": "web", "version": "2"}), wish("podAffinity", "web", keys.clone()));
        assert_eq!(choose(&new, &all).unwrap() == "c", near, "{keys}");
    }
}

#[test]
fn replicas_spread_by_default() {
    let mut all = Snapshot::default();
    for (name, cpu) in [("large", 64_000), ("small", 2_000)] {
        let mut node = node(name, json!({}));
        node.allocatable = [("cpu".into(), cpu), ("memory".into(), cpu << 20), ("pods".into(), 1000)].into();
        node.labels = [("kubernetes.io/hostname".into(), name.into())].into();
        all.set_node(node);
    }
    let replica = |name: &str| PodView { name: name.into(), owner: "rs".into(), ..pod(cpu("500m")) };
    all.take("large", &replica("first").into());
    assert_eq!(choose(&replica("second"), &all).unwrap(), "small");
    let mut none = Profile::default();
    none.spread.clear();
    assert_eq!(with(&none, &replica("second"), &all, &World::default()), "large");
}

#[test]
fn volumes_of_a_driver_and_single_pods_are_limited() {
    let (mut all, world) = (zones(), World::default());
    let claim = |name: &str, modes: Value| {
        let spec = json!({"volumeName": name, "accessModes": modes});
        let meta = json!({"name": name, "namespace": "n", "annotations": {"pv.kubernetes.io/bind-completed": "yes"}});
        world.claims.apply(serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap());
        let csi = json!({"driver": "disks", "volumeHandle": name});
        world.volumes.apply(
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"csi": csi}})).unwrap(),
        );
    };
    claim("one", json!(["ReadWriteOnce"]));
    claim("two", json!(["ReadWriteOnce"]));
    claim("mine", json!(["ReadWriteOncePod"]));
    for node in ["a", "b", "c"] {
        let drivers = json!([{"name": "disks", "allocatable": {"count": 1}}]);
        world.csi_nodes.apply(
            serde_json::from_value(json!({"metadata": {"name": node}, "spec": {"drivers": drivers}}))
                .unwrap(),
        );
    }
    let using = |name: &str, claim: &str| {
        named(
            name,
            json!({}),
            json!({"volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": claim}}]}),
        )
    };
    let profile = Profile::default();
    for node in ["a", "b"] {
        all.take(node, &using(&format!("on-{node}"), "one").into());
    }
    assert_eq!(with(&profile, &using("p", "two"), &all, &world), "c");
    assert!(
        ["a", "b", "c"].contains(&with(&profile, &using("p", "one"), &all, &world).as_str()),
        "the same volume again"
    );
    all.take("c", &using("on-c", "mine").into());
    assert_eq!(
        with(&profile, &using("p", "two"), &all, &world),
        "0/3 nodes are available: 3 node(s) exceed max volume count."
    );
    assert_eq!(
        with(&profile, &using("p", "mine"), &all, &world),
        "0/3 nodes are available: 3 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
    );
}

#[test]
fn preemption_counts_anew_what_pods_are_near() {
    // The pod may not be near to another, which is less important: that one goes.
    let far = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "noisy"}}},
    ]}}});
    let (mut all, world, profile) = (zones(), World::default(), Profile::default());
    for node in ["a", "c"] {
        let noisy = PodView {
            uid: node.into(),
            ..named(&format!("noisy-{node}"), json!({"app": "noisy"}), json!({}))
        };
        all.take(node, &noisy.into());
    }
    let quiet = PodView { priority: 10, preempts: true, ..named("quiet", json!({}), far) };
    let Choice::None { curable, nodes, .. } = super::choose(&quiet, &profile, &all, &world, 0) else {
        panic!("room")
    };
    let found = preempt(&quiet, &profile, &curable, nodes, &all, &world).unwrap();
    let victims: Vec<_> = found.victims.iter().map(|one| one.name.as_str()).collect();
    assert!(
        matches!((found.node.as_str(), victims.as_slice()), ("a", ["noisy-a"]) | ("c", ["noisy-c"])),
        "{found:?}"
    );
}
