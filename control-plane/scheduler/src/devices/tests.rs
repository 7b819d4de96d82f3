//! Claims against devices.

use serde_json::{Value, json};

use super::Claims;
use crate::snapshot::Room;
use crate::view::{NodeView, PodView};
use crate::world::World;

fn room(name: &str) -> Room {
    Room { node: NodeView { name: name.into(), ..NodeView::default() }, ..Room::default() }
}

fn pod(claims: &[&str]) -> PodView {
    let devices = claims.iter().map(|name| ((*name).to_owned(), Some((*name).to_owned()))).collect();
    PodView { namespace: "n".into(), name: "p".into(), uid: "u".into(), devices, ..PodView::default() }
}

fn gpu(name: &str, model: &str, memory: &str, numa: i64) -> Value {
    json!({
        "name": name, "capacity": { "memory": { "value": memory } },
        "attributes": { "model": { "string": model }, "numa": { "int": numa }, "driverVersion": { "version": "1.2.3" } },
    })
}

/// Two nodes: `a` with a small and two large devices, `b` with one large.
fn world() -> World {
    let world = World::default();
    let slice = |node: &str, devices: Value| {
        serde_json::from_value(json!({ "metadata": { "name": node }, "spec": {
            "driver": "gpu.example.com", "nodeName": node, "devices": devices,
            "pool": { "name": node, "generation": 1, "resourceSliceCount": 1 },
        } }))
        .unwrap()
    };
    let of_a =
        json!([gpu("g0", "small", "8Gi", 0), gpu("g1", "large", "80Gi", 0), gpu("g2", "large", "80Gi", 1)]);
    world.resource_slices.apply(slice("a", of_a));
    world.resource_slices.apply(slice("b", json!([gpu("g0", "large", "80Gi", 0)])));
    let class = json!({ "metadata": { "name": "gpu" }, "spec": {
        "selectors": [{ "cel": { "expression": "device.driver == 'gpu.example.com'" } }],
        "config": [{ "opaque": { "driver": "gpu.example.com", "parameters": { "mode": "shared" } } }],
    } });
    world.device_classes.apply(serde_json::from_value(class).unwrap());
    world
}

fn claim(world: &World, name: &str, devices: Value, status: Value) {
    let meta = json!({ "name": name, "namespace": "n", "uid": name });
    let claim = json!({ "metadata": meta, "spec": { "devices": devices }, "status": status });
    world.resource_claims.apply(serde_json::from_value(claim).unwrap());
}

fn exactly(more: Value) -> Value {
    let mut exactly = json!({ "deviceClassName": "gpu" });
    exactly.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "name": "r", "exactly": exactly })
}

fn selector(expression: &str) -> Value {
    json!({ "selectors": [{ "cel": { "expression": expression } }] })
}

/// The devices that a claim gets on a node.
fn got(world: &World, claims: &[&str], node: &str) -> Option<Vec<String>> {
    let pod = pod(claims);
    let grants = Claims::of(&pod, world).unwrap().grants(&pod, &room(node))?;
    let results = grants.into_iter().filter_map(|g| g.allocation?.devices?.results).flatten();
    Some(results.map(|r| r.device).collect())
}

#[test]
fn devices_are_chosen_by_class_selector_and_count() {
    let world = world();
    let ask = |expression: &str| {
        claim(&world, "c", json!({ "requests": [exactly(selector(expression))] }), json!({}));
        (got(&world, &["c"], "a"), got(&world, &["c"], "b"))
    };
    let some = |names: &[&str]| Some(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    assert_eq!(ask("device.attributes['gpu.example.com'].model == 'small'"), (some(&["g0"]), None));
    let large = "device.capacity['gpu.example.com'].memory.isGreaterThan(quantity('40Gi'))";
    assert_eq!(ask(large), (some(&["g1"]), some(&["g0"])));
    assert_eq!(
        ask("device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('2.0.0'))"),
        (None, None)
    );
    assert_eq!(ask("!('x' in device.attributes['other.example.com'])"), (some(&["g0"]), some(&["g0"])));
    claim(&world, "c", json!({ "requests": [exactly(json!({ "count": 3 }))] }), json!({}));
    assert_eq!((got(&world, &["c"], "a"), got(&world, &["c"], "b")), (some(&["g0", "g1", "g2"]), None));
    claim(&world, "c", json!({ "requests": [exactly(json!({ "allocationMode": "All" }))] }), json!({}));
    assert_eq!(
        (got(&world, &["c"], "a"), got(&world, &["c"], "b")),
        (some(&["g0", "g1", "g2"]), some(&["g0"]))
    );
    // The first that can be had; what it is given is said under its name.
    let first = json!({ "requests": [{ "name": "r", "firstAvailable": [
        { "name": "two", "deviceClassName": "gpu", "count": 2 }, { "name": "one", "deviceClassName": "gpu" },
    ] }] });
    claim(&world, "c", first, json!({}));
    assert_eq!((got(&world, &["c"], "a"), got(&world, &["c"], "b")), (some(&["g0", "g1"]), some(&["g0"])));
}

#[test]
fn constraints_hold_between_the_devices_of_a_claim() {
    let world = world();
    let two = |constraint: Value| {
        let requests = json!([exactly(json!({ "count": 2 }))]);
        claim(&world, "c", json!({ "requests": requests, "constraints": [constraint] }), json!({}));
        got(&world, &["c"], "a").unwrap_or_default().join(",")
    };
    assert_eq!(two(json!({ "matchAttribute": "gpu.example.com/model" })), "g1,g2");
    assert_eq!(two(json!({ "matchAttribute": "gpu.example.com/numa" })), "g0,g1");
    assert_eq!(two(json!({ "distinctAttribute": "gpu.example.com/numa" })), "g0,g2");
    assert_eq!(two(json!({ "matchAttribute": "gpu.example.com/nothing" })), "");
}

#[test]
fn what_others_have_is_not_given_and_what_a_claim_has_ties_it_to_its_node() {
    let world = world();
    let one = || json!({ "requests": [exactly(json!({}))] });
    claim(&world, "c", one(), json!({}));
    let p = pod(&["c"]);
    let grants = Claims::of(&p, &world).unwrap().grants(&p, &room("b")).unwrap();
    let allocation = grants[0].allocation.clone().unwrap();
    let shown = serde_json::to_value(&allocation).unwrap();
    assert_eq!(shown["devices"]["config"][0]["source"], "FromClass");
    assert_eq!(shown["nodeSelector"]["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["b"]));
    // Promised: nobody else gets it, though the API does not show it yet.
    world.promised.lock().insert("c".into(), allocation);
    claim(&world, "d", one(), json!({}));
    assert_eq!(
        Claims::of(&pod(&["d"]), &world).unwrap().refuse(&room("b")),
        Some("cannot allocate all claims")
    );
    let tied = Claims::of(&p, &world).unwrap();
    assert_eq!(tied.refuse(&room("a")), Some("resourceclaim not available on the node"));
    assert_eq!(tied.refuse(&room("b")), None);
    // Two claims of one pod get different devices.
    world.promised.lock().clear();
    assert_eq!(got(&world, &["c", "d"], "b"), None);
    assert_eq!(got(&world, &["c", "d"], "a").unwrap(), ["g0", "g1"]);
    // An administrator looks at what others have.
    let admin = json!({ "requests": [exactly(json!({ "adminAccess": true }))] });
    claim(&world, "e", admin, json!({}));
    world.promised.lock().insert("c".into(), serde_json::from_value(shown).unwrap());
    assert_eq!(got(&world, &["e"], "b").unwrap(), ["g0"]);
}

#[test]
fn what_keeps_a_pod_from_every_node_is_said() {
    let world = world();
    let why = |claims: &[&str]| Claims::of(&pod(claims), &world).map(|_| ()).unwrap_err();
    assert_eq!(why(&["none"]), "resourceclaim \"none\" not found");
    let mut untold = pod(&[]);
    untold.devices = vec![("gpu".into(), None)];
    let words = "waiting for dynamic resource controller to create the resourceclaim \"gpu\"";
    assert_eq!(Claims::of(&untold, &world).map(|_| ()).unwrap_err(), words);
    claim(
        &world,
        "c",
        json!({ "requests": [{ "name": "r", "exactly": { "deviceClassName": "tpu" } }] }),
        json!({}),
    );
    assert_eq!(why(&["c"]), "could not retrieve device class tpu");
    let wrong = selector("device.attributes['gpu.example.com'].nothing == 1");
    claim(&world, "c", json!({ "requests": [exactly(wrong)] }), json!({}));
    assert!(why(&["c"]).starts_with("claim c, request r: selector #1: CEL runtime error"), "{}", why(&["c"]));
    // Taints of devices, and pools that are being changed.
    let tainted = json!({ "metadata": { "name": "b" }, "spec": { "driver": "gpu.example.com", "nodeName": "b",
        "pool": { "name": "b", "generation": 2, "resourceSliceCount": 1 },
        "devices": [{ "name": "g0", "taints": [{ "key": "broken", "effect": "NoSchedule" }] }] } });
    world.resource_slices.apply(serde_json::from_value(tainted.clone()).unwrap());
    claim(&world, "c", json!({ "requests": [exactly(json!({}))] }), json!({}));
    assert_eq!(got(&world, &["c"], "b"), None);
    let tolerant = json!({ "tolerations": [{ "key": "broken", "operator": "Exists" }] });
    claim(&world, "c", json!({ "requests": [exactly(tolerant)] }), json!({}));
    assert_eq!(got(&world, &["c"], "b").unwrap(), ["g0"]);
    let mut half = tainted;
    half["spec"]["pool"]["resourceSliceCount"] = 2.into();
    world.resource_slices.apply(serde_json::from_value(half).unwrap());
    assert_eq!(got(&world, &["c"], "b"), None);
}
