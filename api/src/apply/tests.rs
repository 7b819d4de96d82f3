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
        versions: &OneVersion,
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
        &OneVersion,
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
        &OneVersion,
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
            &OneVersion,
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
    let entries = after_update(
        node("ConfigMap"),
        &OneVersion,
        &json!({}),
        &live,
        Vec::new(),
        &owner,
        Scope::Everything,
    );
    live["metadata"]["managedFields"] = encode(entries).unwrap();
    let taken = run("ConfigMap", &live, map(json!({"a": "2"})), "kubectl", false).unwrap();
    assert_eq!(taken["data"], json!({"a": "2", "b": "changed"}));
    // What kubectl looks at next time says what was applied now.
    let last = taken["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
    assert_eq!(last, Some(format!("{}\n", map(json!({"a": "2"}))).as_str()));
    let large = "x".repeat(crate::meta::validation::ANNOTATIONS_MAX);
    let without = run("ConfigMap", &live, map(json!({"a": large})), "kubectl", false).unwrap();
    assert_eq!(without["metadata"]["annotations"], json!({}), "more than annotations may be");
    let other = run("ConfigMap", &live, map(json!({"a": "2"})), "other", true).unwrap();
    assert_eq!(other["metadata"]["annotations"], live["metadata"]["annotations"], "nobody else writes it");
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

/// `v1` has `data.at: "host:port"`, `v2` has `data.host` and `data.port`; `v0` is served no more.
struct Addresses;

impl Versions for Addresses {
    fn form(&self, api_version: &str) -> Form<'_> {
        match api_version {
            "v1" | "v2" => Form::Other(node("ConfigMap")),
            _ => Form::Gone,
        }
    }

    fn convert(&self, obj: &Value, from: &str, to: &str) -> Option<Value> {
        let (mut out, data) = (obj.clone(), &obj["data"]);
        match (from, to) {
            ("v1", "v2") => {
                if let Some(at) = data["at"].as_str() {
                    let (host, port) = at.split_once(':')?;
                    out["data"] = json!({"host": host, "port": port});
                }
            }
            ("v2", "v1") => {
                let text = |name: &str| data[name].as_str().unwrap_or_default();
                out["data"] = json!({"at": format!("{}:{}", text("host"), text("port"))});
            }
            _ => {}
        }
        Some(out)
    }
}

fn in_version(version: &str, manager: &str, operation: Operation) -> Writer {
    Writer { api_version: version.into(), ..writer(manager, operation) }
}

#[test]
fn what_is_owned_is_compared_in_the_version_of_its_owner() {
    let apply_in =
        |live: &Value, entries: &[Entry], version: &str, manager: &str, data: Value, force: bool| {
            apply(&Apply {
                node: node("ConfigMap"),
                versions: &Addresses,
                live,
                exists: !entries.is_empty(),
                config: &map(data),
                entries: entries.to_vec(),
                writer: &in_version(version, manager, Operation::Apply),
                scope: Scope::Everything,
                force,
            })
        };
    let empty = json!({"metadata": {}});
    let (one, entries) = apply_in(&empty, &[], "v1", "first", json!({"at": "a:1"}), true).unwrap();
    // The same in other words is no conflict; another port is one with the field of the first.
    let seen = Addresses.convert(&one, "v1", "v2").unwrap();
    let (_, both) =
        apply_in(&seen, &entries, "v2", "second", json!({"host": "a", "port": "1"}), false).unwrap();
    assert_eq!(both.len(), entries.len() + 1);
    let refused = apply_in(&seen, &entries, "v2", "second", json!({"port": "2"}), false).unwrap_err();
    assert_eq!(
        refused.status("x").message,
        "Apply failed with 1 conflict: conflict with \"first\": .data.at"
    );
    let (two, taken) = apply_in(&seen, &entries, "v2", "second", json!({"port": "2"}), true).unwrap();
    assert_eq!(two["data"], json!({"host": "a", "port": "2"}));
    let list = encode(taken.clone()).unwrap();
    let of = |list: &Value, manager: &str| {
        list.as_array().unwrap().iter().find(|e| e["manager"] == manager).map(|e| e["fieldsV1"].clone())
    };
    assert_eq!(of(&list, "first"), None);
    // What the first no longer sets, the second has in its own words: it stays.
    let (kept, _) =
        apply_in(&Addresses.convert(&two, "v2", "v1").unwrap(), &both, "v1", "first", json!({}), false)
            .unwrap();
    assert_eq!(kept["data"], json!({"at": "a:2"}));
    // An update in one version takes from owners in the other; owners in a version that is gone are forgotten.
    let mut owners = entries;
    owners
        .push(Entry { writer: in_version("v0", "old", Operation::Update), fields: owners[0].fields.clone() });
    let next = map(json!({"host": "b", "port": "1"}));
    let user = in_version("v2", "user", Operation::Update);
    let left = after_update(node("ConfigMap"), &Addresses, &seen, &next, owners, &user, Scope::Everything);
    let list = encode(left).unwrap();
    assert_eq!((of(&list, "first"), of(&list, "old")), (None, None));
    assert_eq!(of(&list, "user"), Some(json!({"f:data": {"f:host": {}}})));
}
