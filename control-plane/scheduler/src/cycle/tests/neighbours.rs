//! Pods that want to be near to others, far from them, or spread.

use super::*;

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
    let Choice::None { curable, nodes, .. } = crate::cycle::choose(&quiet, &profile, &all, &world, 0) else {
        panic!("room")
    };
    let found = preempt(&quiet, &profile, &curable, nodes, &all, &world).unwrap();
    let victims: Vec<_> = found.victims.iter().map(|one| one.name.as_str()).collect();
    assert!(
        matches!((found.node.as_str(), victims.as_slice()), ("a", ["noisy-a"]) | ("c", ["noisy-c"])),
        "{found:?}"
    );
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
