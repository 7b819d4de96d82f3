//! The examples of the documents that say what patches do: RFC 6902 (appendix A), RFC 7386 (appendix A), and Kubernetes' page
//! about strategic merge patches.

use coracle_api::patch::{Patch, PatchType, json, merge, strategic};
use coracle_api::schema::{self, Type};
use coracle_api::{Gvk, yaml};
use serde_json::{Value, json as value};

/// RFC 6902, appendix A, by its numbers. `None`: the patch fails.
#[test]
fn rfc_6902() {
    let table: [(&str, Value, Value, Option<Value>); 16] = [
        (
            "A.1",
            value!({"foo": "bar"}),
            value!([{"op": "add", "path": "/baz", "value": "qux"}]),
            Some(value!({"baz": "qux", "foo": "bar"})),
        ),
        (
            "A.2",
            value!({"foo": ["bar", "baz"]}),
            value!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
            Some(value!({"foo": ["bar", "qux", "baz"]})),
        ),
        (
            "A.3",
            value!({"baz": "qux", "foo": "bar"}),
            value!([{"op": "remove", "path": "/baz"}]),
            Some(value!({"foo": "bar"})),
        ),
        (
            "A.4",
            value!({"foo": ["bar", "qux", "baz"]}),
            value!([{"op": "remove", "path": "/foo/1"}]),
            Some(value!({"foo": ["bar", "baz"]})),
        ),
        (
            "A.5",
            value!({"baz": "qux", "foo": "bar"}),
            value!([{"op": "replace", "path": "/baz", "value": "boo"}]),
            Some(value!({"baz": "boo", "foo": "bar"})),
        ),
        (
            "A.6",
            value!({"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}}),
            value!([{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}]),
            Some(value!({"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}})),
        ),
        (
            "A.7",
            value!({"foo": ["all", "grass", "cows", "eat"]}),
            value!([{"op": "move", "from": "/foo/1", "path": "/foo/3"}]),
            Some(value!({"foo": ["all", "cows", "eat", "grass"]})),
        ),
        (
            "A.8",
            value!({"baz": "qux", "foo": ["a", 2, "c"]}),
            value!([{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}]),
            Some(value!({"baz": "qux", "foo": ["a", 2, "c"]})),
        ),
        ("A.9", value!({"baz": "qux"}), value!([{"op": "test", "path": "/baz", "value": "bar"}]), None),
        (
            "A.10",
            value!({"foo": "bar"}),
            value!([{"op": "add", "path": "/child", "value": {"grandchild": {}}}]),
            Some(value!({"foo": "bar", "child": {"grandchild": {}}})),
        ),
        (
            "A.11",
            value!({"foo": "bar"}),
            value!([{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}]),
            Some(value!({"foo": "bar", "baz": "qux"})),
        ),
        ("A.12", value!({"foo": "bar"}), value!([{"op": "add", "path": "/baz/bat", "value": "qux"}]), None),
        (
            "A.14",
            value!({"/": 9, "~1": 10}),
            value!([{"op": "test", "path": "/~01", "value": 10}]),
            Some(value!({"/": 9, "~1": 10})),
        ),
        ("A.15", value!({"/": 9, "~1": 10}), value!([{"op": "test", "path": "/~01", "value": "10"}]), None),
        (
            "A.16",
            value!({"foo": ["bar"]}),
            value!([{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}]),
            Some(value!({"foo": ["bar", ["abc", "def"]]})),
        ),
        (
            "4.6",
            value!({"a": {"b": [1, {"c": null}]}}),
            value!([{"op": "test", "path": "/a", "value": {"b": [1, {"c": null}]}}, {"op": "copy", "from": "/a/b", "path": "/d"}]),
            Some(value!({"a": {"b": [1, {"c": null}]}, "d": [1, {"c": null}]})),
        ),
    ];
    for (name, target, patch, expected) in table {
        assert_eq!(json(&target, &patch).ok(), expected, "{name}");
    }
}

/// RFC 7386, appendix A. A patch of the API is an object, so those that are none are refused when they are read.
#[test]
fn rfc_7386() {
    let table = [
        (value!({"a": "b"}), value!({"a": "c"}), value!({"a": "c"})),
        (value!({"a": "b"}), value!({"b": "c"}), value!({"a": "b", "b": "c"})),
        (value!({"a": "b"}), value!({"a": null}), value!({})),
        (value!({"a": "b", "b": "c"}), value!({"a": null}), value!({"b": "c"})),
        (value!({"a": ["b"]}), value!({"a": "c"}), value!({"a": "c"})),
        (value!({"a": "c"}), value!({"a": ["b"]}), value!({"a": ["b"]})),
        (value!({"a": {"b": "c"}}), value!({"a": {"b": "d", "c": null}}), value!({"a": {"b": "d"}})),
        (value!({"a": [{"b": "c"}]}), value!({"a": [1]}), value!({"a": [1]})),
        (value!({"e": null}), value!({"a": 1}), value!({"e": null, "a": 1})),
        (value!({}), value!({"a": {"bb": {"ccc": null}}}), value!({"a": {"bb": {}}})),
    ];
    for (target, patch, expected) in table {
        assert_eq!(merge(&target, &patch).expect("patch"), expected, "{target} {patch}");
    }
    for body in ["[\"c\"]", "null", "\"bar\""] {
        assert!(Patch::parse(PatchType::Merge, body.as_bytes()).is_err(), "{body}");
    }
}

fn deployment() -> &'static Type {
    schema::for_gvk(&Gvk::new("apps", "v1", "Deployment")).expect("type")
}

fn document(text: &str) -> Value {
    yaml::to_json_documents(text).expect("yaml").remove(0)
}

/// Target, patch and result as in the pages "Update API Objects in Place Using kubectl patch" and "Strategic Merge Patch".
fn example(target: &str, patch: &str, expected: &str) {
    let result = strategic(&document(target), &document(patch), deployment()).expect("patch");
    assert_eq!(result, document(expected), "{patch}");
}

const TWO: &str =
    "spec: {template: {spec: {containers: [{name: nginx, image: nginx}, {name: redis, image: redis}]}}}";

#[test]
fn strategic_merge_of_lists() {
    let one = "spec: {template: {spec: {containers: [{name: nginx, image: nginx}]}}}";
    // A list with a merge key merges; what is new comes first.
    example(
        one,
        "spec: {template: {spec: {containers: [{name: redis, image: redis}]}}}",
        "spec: {template: {spec: {containers: [{name: redis, image: redis}, {name: nginx, image: nginx}]}}}",
    );
    // A list without one is replaced.
    example(
        "spec: {template: {spec: {tolerations: [{effect: NoSchedule, key: dedicated, value: test-team}]}}}",
        "spec: {template: {spec: {tolerations: [{effect: NoSchedule, key: disktype, value: ssd}]}}}",
        "spec: {template: {spec: {tolerations: [{effect: NoSchedule, key: disktype, value: ssd}]}}}",
    );
    // Primitives merge in the few lists that say so; the order of the patch goes before that of the target.
    example(
        "metadata: {finalizers: [a, b, c]}",
        "metadata: {finalizers: [b, d]}",
        "metadata: {finalizers: [a, b, d, c]}",
    );
}

#[test]
fn strategic_merge_directives() {
    example(
        TWO,
        "spec: {template: {spec: {containers: [{name: log-tailer, image: tailer}, {$patch: replace}]}}}",
        "spec: {template: {spec: {containers: [{name: log-tailer, image: tailer}]}}}",
    );
    example(
        TWO,
        "spec: {template: {spec: {containers: [{name: nginx, $patch: delete}]}}}",
        "spec: {template: {spec: {containers: [{name: redis, image: redis}]}}}",
    );
    example(
        "spec: {selector: {matchLabels: {a: b, c: d}}}",
        "spec: {selector: {$patch: replace, matchLabels: {e: f}}}",
        "spec: {selector: {matchLabels: {e: f}}}",
    );
    example("spec: {replicas: 1, paused: true}", "spec: {replicas: 2, paused: null}", "spec: {replicas: 2}");
    example(
        "metadata: {finalizers: [a, b, c]}",
        "metadata: {$deleteFromPrimitiveList/finalizers: [b, c]}",
        "metadata: {finalizers: [a]}",
    );
    example(
        TWO,
        "spec: {template: {spec: {$setElementOrder/containers: [{name: redis}, {name: nginx}], containers: [{name: nginx, image: new}]}}}",
        "spec: {template: {spec: {containers: [{name: redis, image: redis}, {name: nginx, image: new}]}}}",
    );
    example(
        "metadata: {finalizers: [a, b]}",
        "metadata: {$setElementOrder/finalizers: [c, b, a], finalizers: [c]}",
        "metadata: {finalizers: [c, b, a]}",
    );
    // Of a union only what is named stays.
    example(
        "spec: {strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 1}}}",
        "spec: {strategy: {$retainKeys: [type], type: Recreate}}",
        "spec: {strategy: {type: Recreate}}",
    );
    example(
        "spec: {template: {spec: {volumes: [{name: a, emptyDir: {}}]}}}",
        "spec: {template: {spec: {volumes: [{$retainKeys: [name, hostPath], name: a, hostPath: {path: /x}}]}}}",
        "spec: {template: {spec: {volumes: [{name: a, hostPath: {path: /x}}]}}}",
    );
}
