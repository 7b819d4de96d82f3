use super::*;
use crate::meta::Gvk;
use proptest::prelude::*;
use serde_json::json;

fn deployment() -> &'static Type {
    schema::for_gvk(&Gvk::new("apps", "v1", "Deployment")).unwrap()
}

#[test]
fn json_operations() {
    let target = json!({"a": {"b": [1, 2, 3]}, "x~/y": 1});
    let table = [
        (json!([{"op": "add", "path": "/a/b/-", "value": 4}]), json!({"a": {"b": [1, 2, 3, 4]}, "x~/y": 1})),
        (json!([{"op": "add", "path": "/a/b/0", "value": 0}]), json!({"a": {"b": [0, 1, 2, 3]}, "x~/y": 1})),
        (json!([{"op": "remove", "path": "/a/b/-1"}]), json!({"a": {"b": [1, 2]}, "x~/y": 1})),
        (
            json!([{"op": "replace", "path": "/x~0~1y", "value": 2}]),
            json!({"a": {"b": [1, 2, 3]}, "x~/y": 2}),
        ),
        (
            json!([{"op": "replace", "path": "/new", "value": 2}]),
            json!({"a": {"b": [1, 2, 3]}, "x~/y": 1, "new": 2}),
        ),
        (json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": [1, 2, 3], "x~/y": 1})),
        (json!([{"op": "test", "path": "/a/b/0", "value": 1.0}]), target.clone()),
        (json!([{"op": "add", "path": "", "value": {}}]), json!({})),
    ];
    for (patch, expected) in table {
        assert_eq!(json(&target, &patch).unwrap(), expected, "{patch}");
    }
    for bad in [
        json!([{"op": "remove", "path": "/none"}]),
        json!([{"op": "add", "path": "/none/x", "value": 1}]),
        json!([{"op": "add", "path": "/a/b/9", "value": 1}]),
        json!([{"op": "test", "path": "/a", "value": 1}]),
        json!([{"op": "frob", "path": "/a"}]),
        json!([{"op": "add", "path": "/a"}]),
        json!([{"path": "/a"}]),
        json!([1]),
        json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
        json!([{"op": "remove", "path": ""}]),
    ] {
        assert_eq!(json(&target, &bad).unwrap_err().code, 422, "{bad}");
    }
}

#[test]
fn copies_are_bounded() {
    let copy = |i: usize| json!({"op": "copy", "from": "/a", "path": format!("/{i}")});
    let target = json!({"a": "x".repeat(100_000)});
    assert!(json(&target, &(0..20).map(copy).collect()).is_ok());
    assert_eq!(json(&target, &(0..40).map(copy).collect()).unwrap_err().code, 422);
}

#[test]
fn depth_is_bounded() {
    let nest = |n: usize| -> Value {
        let two = |_| {
            [
                json!({"op": "add", "path": "/b", "value": {}}),
                json!({"op": "move", "from": "/a", "path": "/b/a"}),
                json!({"op": "move", "from": "/b", "path": "/a"}),
            ]
        };
        (0..n).flat_map(two).collect()
    };
    assert!(json(&json!({"a": 1}), &nest(100)).is_ok());
    assert_eq!(json(&json!({"a": 1}), &nest(3000)).unwrap_err().code, 422);
}

#[test]
fn merge_follows_rfc_7386() {
    let table = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": [1]}), json!({"a": {"b": null, "c": 1}}), json!({"a": {"c": 1}})),
        (json!({"a": {"b": 1}}), json!({"a": {"c": {"d": null}}}), json!({"a": {"b": 1, "c": {}}})),
    ];
    for (target, patch, expected) in table {
        assert_eq!(merge(&target, &patch).unwrap(), expected);
    }
}

#[test]
fn bodies_that_are_no_patch() {
    let table = [
        (
            PatchType::Json,
            "{\"op\":\"add\"}",
            "error decoding patch: json: cannot unmarshal object into Go value of type []handlers.jsonPatchOp",
        ),
        (PatchType::Json, "[{", "error decoding patch: unexpected end of JSON input"),
        (
            PatchType::Merge,
            "[]",
            "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}",
        ),
        (PatchType::Merge, "{", "error decoding patch: unexpected end of JSON input"),
        (PatchType::Strategic, "{", "unexpected end of JSON input"),
    ];
    for (kind, body, words) in table {
        let error = Patch::parse(kind, body.as_bytes()).unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (400, words));
    }
    let many = format!("[{}1]", "1,".repeat(MAX_OPERATIONS));
    assert_eq!(Patch::parse(PatchType::Json, many.as_bytes()).unwrap_err().code, 413);
    let twice = Patch::parse(PatchType::Merge, b"{\"a\":{\"b\":1,\"b\":2}}").unwrap();
    assert_eq!(twice.duplicates(), ["duplicate field \"a.b\""]);
}

fn containers(target: Value, patch: Value) -> Result<Value, Status> {
    let wrap = |c: Value| json!({"spec": {"template": {"spec": c}}});
    let out = strategic(&wrap(json!({"containers": target})), &wrap(patch), deployment())?;
    Ok(out["spec"]["template"]["spec"]["containers"].clone())
}

#[test]
fn lists_merge_by_key() {
    let two = json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]);
    let table = [
        (
            json!({"containers": [{"name": "b", "image": "2"}]}),
            json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "2"}]),
        ),
        (json!({"containers": [{"name": "a", "$patch": "delete"}]}), json!([{"name": "b"}])),
        (json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}), json!([{"name": "c"}])),
        (
            json!({"containers": [{"name": "c"}]}),
            json!([{"name": "c"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]),
        ),
        (
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!([{"name": "b"}, {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}]),
        ),
        (
            json!({"containers": [{"name": "a", "image": null, "env": [{"name": "X", "$patch": "delete"}]}]}),
            json!([{"name": "a", "env": []}, {"name": "b"}]),
        ),
        // What is not there to merge with loses its directives all the same.
        (
            json!({"containers": [{"name": "b", "securityContext": {"$patch": "replace", "runAsUser": 1}}]}),
            json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "securityContext": {"runAsUser": 1}}]),
        ),
    ];
    for (patch, expected) in table {
        assert_eq!(containers(two.clone(), patch.clone()).unwrap(), expected, "{patch}");
    }
    assert_eq!(
        containers(two.clone(), json!({"containers": [{"image": "x"}]})).unwrap_err().message,
        "map: map[image:x] does not contain declared merge key: name"
    );
    assert_eq!(
        containers(two, json!({"containers": [{"name": "a", "$patch": "frob"}]})).unwrap_err().message,
        "unknown patch type: frob in map: map[$patch:frob name:a]"
    );
}

#[test]
fn other_directives() {
    let target = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"}}, "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let table = [
        (json!({"metadata": {"finalizers": ["c", "a"]}}), "/metadata/finalizers", json!(["c", "a", "b"])),
        (
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
            "/metadata/finalizers",
            json!(["b"]),
        ),
        (
            json!({"metadata": {"labels": {"$patch": "replace", "y": "2"}}}),
            "/metadata/labels",
            json!({"y": "2"}),
        ),
        (json!({"metadata": {"labels": {"$patch": "delete"}}}), "/metadata/labels", json!({})),
        (json!({"metadata": {"labels": {"x": null}}}), "/metadata/labels", json!({})),
        (
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            "/spec/strategy",
            json!({"type": "Recreate"}),
        ),
    ];
    for (patch, at, expected) in table {
        let out = strategic(&target, &patch, deployment()).unwrap();
        assert_eq!(out.pointer(at), Some(&expected), "{patch}");
    }
    let bad = json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    assert_eq!(strategic(&target, &bad, deployment()).unwrap_err().code, 400);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3i64..3).prop_map(Value::from),
        "[a-c]{0,2}|delete|replace|name".prop_map(Value::from),
    ];
    let key = "[a-c]|name|spec|template|metadata|containers|finalizers|\\$patch|\\$retainKeys|\\$setElementOrder/containers|\\$deleteFromPrimitiveList/finalizers";
    leaf.prop_recursive(5, 40, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key, inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_patch_panics(target in any_json(), patch in any_json()) {
        let _ = json(&target, &patch);
        let _ = merge(&target, &patch);
        let _ = strategic(&target, &patch, deployment());
    }

    #[test]
    fn merging_twice_is_merging_once(target in any_json(), patch in any_json()) {
        let once = merge(&target, &patch).unwrap();
        prop_assert_eq!(&merge(&once, &patch).unwrap(), &once);
    }
}
