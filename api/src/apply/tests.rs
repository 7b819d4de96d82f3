use serde_json::{Value, json};

use super::*;
use crate::meta::Gvk;
use crate::schema;

fn node(kind: &str) -> Node<'static> {
    let group = if kind == "Deployment" { "apps" } else { "" };
    Node::Type(schema::for_gvk(&Gvk::new(group, "v1", kind)).unwrap())
}

fn writer(manager: &str, operation: Operation) -> Writer {
    let time = "2026-01-01T00:00:00Z".to_owned();
    Writer { manager: manager.into(), operation, api_version: "v1".into(), subresource: String::new(), time }
}

/// Applies with what is owned in the object itself.
fn run(kind: &str, live: &Value, config: Value, manager: &str, force: bool) -> Result<Value, String> {
    let mut object = live.clone();
    let list = object["metadata"].as_object_mut().and_then(|m| m.remove("managedFields"));
    let request = Apply {
        node: node(kind),
        live: &object,
        exists: list.is_some(),
        config: &config,
        entries: list.as_ref().and_then(decode).unwrap_or_default(),
        writer: &writer(manager, Operation::Apply),
        scope: Scope::Everything,
        force,
    };
    let (mut new, entries) = apply(&request).map_err(|e| e.status("x").message)?;
    if let Some(list) = encode(entries) {
        new["metadata"]["managedFields"] = list;
    }
    Ok(new)
}

fn owned(object: &Value, manager: &str) -> Value {
    let list = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    list.iter().find(|e| e["manager"] == manager).map_or(Value::Null, |e| e["fieldsV1"].clone())
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data})
}

#[test]
fn fields_are_shared_taken_and_dropped() {
    let empty = json!({"metadata": {}});
    let a = run("ConfigMap", &empty, map(json!({"a": "1", "b": "1"})), "m1", false).unwrap();
    assert_eq!(owned(&a, "m1"), json!({"f:data": {"f:a": {}, "f:b": {}}}));
    let b = run("ConfigMap", &a, map(json!({"a": "1", "c": "1"})), "m2", false).unwrap();
    assert_eq!(b["data"], json!({"a": "1", "b": "1", "c": "1"}));
    let refused = run("ConfigMap", &b, map(json!({"a": "2", "c": "1"})), "m2", false).unwrap_err();
    assert_eq!(refused, "Apply failed with 1 conflict: conflict with \"m1\": .data.a");
    let forced = run("ConfigMap", &b, map(json!({"a": "2", "c": "1"})), "m2", true).unwrap();
    assert_eq!((&forced["data"]["a"], owned(&forced, "m1")), (&json!("2"), json!({"f:data": {"f:b": {}}})));
    let dropped = run("ConfigMap", &forced, map(json!({})), "m1", false).unwrap();
    assert_eq!(dropped["data"], json!({"a": "2", "c": "1"}));
    assert_eq!(owned(&dropped, "m1"), json!({"f:data": {}}));
}

#[test]
fn lists_merge_by_their_keys() {
    let empty = json!({"metadata": {}});
    let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}});
    let a = run(
        "Pod",
        &empty,
        pod(json!([{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}])),
        "m1",
        false,
    )
    .unwrap();
    let key = "k:{\"containerPort\":80,\"protocol\":\"TCP\"}";
    assert_eq!(
        owned(&a, "m1")["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:ports"][key],
        json!({".": {}, "f:containerPort": {}})
    );
    let b = run("Pod", &a, pod(json!([{"name": "b", "image": "j"}])), "m2", false).unwrap();
    let names: Vec<&Value> = b["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["a", "b"]);
    let c = run("Pod", &b, pod(json!([{"name": "a", "image": "i"}])), "m1", false).unwrap();
    assert_eq!(c["spec"]["containers"][0], json!({"name": "a", "image": "i"}));
    let d =
        run("Pod", &c, json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}), "m2", false)
            .unwrap();
    let names: Vec<&Value> = d["spec"]["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names, ["a"]);
    let twice = run("Pod", &empty, pod(json!([{"name": "a"}, {"name": "a"}])), "m", false).unwrap_err();
    assert!(twice.ends_with(".spec.containers: duplicate entries for key [name=\"a\"]"), "{twice}");
    let unknown = run("ConfigMap", &empty, json!({"bogus": 1}), "m", false).unwrap_err();
    assert!(unknown.ends_with(".bogus: field not declared in schema"), "{unknown}");
}

#[test]
fn an_update_takes_what_it_changes() {
    let live = map(json!({"a": "1", "b": "1"}));
    let entries = after_update(
        node("ConfigMap"),
        &json!({}),
        &live,
        Vec::new(),
        &writer("u1", Operation::Update),
        Scope::Everything,
    );
    let list = encode(entries).unwrap();
    assert_eq!(list[0]["fieldsV1"], json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
    let next = map(json!({"a": "2", "b": "1"}));
    let entries = after_update(
        node("ConfigMap"),
        &live,
        &next,
        decode(&list).unwrap(),
        &writer("u2", Operation::Update),
        Scope::Everything,
    );
    let list = encode(entries).unwrap();
    assert_eq!(list[0]["fieldsV1"], json!({"f:data": {".": {}, "f:b": {}}}));
    assert_eq!(list[1]["fieldsV1"], json!({"f:data": {"f:a": {}}}));
    let mut entries = Vec::new();
    let mut was = map(json!({}));
    for i in 0..15 {
        let is = map(json!({format!("k{i}"): "v"}));
        let mut merged = was.clone();
        merged["data"][format!("k{i}")] = is["data"][format!("k{i}")].clone();
        entries = after_update(
            node("ConfigMap"),
            &was,
            &merged,
            entries,
            &writer(&format!("u{i}"), Operation::Update),
            Scope::Everything,
        );
        was = merged;
    }
    let list = encode(entries).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 10);
    assert!(list.to_string().contains("ancient-changes"));
}

#[test]
fn kubectl_takes_over_what_it_applied_itself() {
    let last = map(json!({"a": "1", "b": "1"}));
    let mut live = map(json!({"a": "1", "b": "changed"}));
    live["metadata"]["annotations"] =
        json!({"kubectl.kubernetes.io/last-applied-configuration": last.to_string()});
    let owner = writer("kubectl-client-side-apply", Operation::Update);
    let entries = after_update(node("ConfigMap"), &json!({}), &live, Vec::new(), &owner, Scope::Everything);
    live["metadata"]["managedFields"] = encode(entries).unwrap();
    let taken = run("ConfigMap", &live, map(json!({"a": "2"})), "kubectl", false).unwrap();
    assert_eq!(taken["data"], json!({"a": "2", "b": "changed"}));
    assert!(run("ConfigMap", &live, map(json!({"b": "2"})), "kubectl", false).is_err());
    assert!(run("ConfigMap", &live, map(json!({"a": "2"})), "other", false).is_err());
}

#[test]
fn items_stay_where_they_were() {
    let list = |names: &[&str]| -> Value { names.iter().map(|n| json!({"name": n})).collect() };
    let object = |names: &[&str]| json!({"spec": {"containers": list(names)}});
    let table: [(&[&str], &[&str], &[&str]); 4] = [
        (&["a", "b", "c"], &["b"], &["a", "b", "c"]),
        (&["a", "b"], &["b", "a"], &["b", "a"]),
        (&["a"], &["x", "a", "y"], &["x", "a", "y"]),
        (&["a", "b", "c"], &["c", "x", "a"], &["b", "c", "x", "a"]),
    ];
    for (live, config, expected) in table {
        let merged = merge::merge(node("Pod"), &object(live), &object(config));
        assert_eq!(merged, object(expected), "{live:?} and {config:?}");
    }
}
