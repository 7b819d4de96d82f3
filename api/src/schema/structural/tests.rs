use serde_json::{Value, json};

use super::*;
use crate::field::Path;
use crate::meta::Gvk;
use crate::schema::{Input, Validation};

fn widget() -> Structural {
    let schema = json!({
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "required": ["size"],
                "properties": {
                    "size": {"type": "integer", "minimum": 1, "maximum": 10},
                    "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
                    "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                    "port": {"x-kubernetes-int-or-string": true},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                    "parts": {
                        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                        "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}, "n": {"type": "integer", "default": 3}}},
                    },
                },
            },
        },
    });
    parse(&schema, &Path::new("s")).unwrap_or_else(|e| panic!("{e:?}"))
}

fn errors(spec: Value) -> Vec<String> {
    validate(&widget(), &json!({"spec": spec})).iter().map(ToString::to_string).collect()
}

#[test]
fn values_in_kubernetes_words() {
    let table = [
        (json!({"size": 3}), vec![]),
        (json!({}), vec!["spec.size: Required value"]),
        (
            json!({"size": 0}),
            vec!["spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"],
        ),
        (
            json!({"size": 11}),
            vec!["spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10"],
        ),
        (
            json!({"size": "x"}),
            vec![
                "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
            ],
        ),
        (
            json!({"size": 1, "color": "blue"}),
            vec!["spec.color: Unsupported value: \"blue\": supported values: \"red\", \"green\""],
        ),
        (
            json!({"size": 1, "name": "A"}),
            vec!["spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'"],
        ),
        (json!({"size": 1, "name": "abcdef"}), vec!["spec.name: Too long: may not be more than 5 bytes"]),
        (json!({"size": 1, "port": "http"}), vec![]),
        (
            json!({"size": 1, "port": true}),
            vec![
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            ],
        ),
        (
            json!({"size": 1, "parts": [{"id": "a"}, {"id": "a"}]}),
            vec!["spec.parts[1]: Duplicate value: {\"id\":\"a\"}"],
        ),
    ];
    for (spec, words) in table {
        assert_eq!(errors(spec.clone()), words, "{spec}");
    }
}

#[test]
fn what_an_update_leaves_alone_is_not_checked() {
    let old = json!({"spec": {"size": 99, "name": "ok"}});
    let new = json!({"spec": {"size": 99, "name": "fine"}});
    assert!(validate_update(&widget(), &new, &old).is_empty());
    assert_eq!(validate(&widget(), &new).len(), 1);
}

#[test]
fn unknown_fields_are_dropped_and_defaults_set() {
    let gvk = Gvk::new("example.com", "v1", "Widget");
    let body = json!({
        "apiVersion": "example.com/v1", "kind": "Widget", "bogus": 1, "metadata": {"name": "w", "nope": 1},
        "spec": {"size": 1, "x": {"y": 1}, "free": {"any": 1}, "labels": {"k": "v"}, "parts": [{"id": "a", "z": 1}]},
    })
    .to_string();
    let decoded = decode(&widget(), &gvk, Input::Json(body.as_bytes()), Validation::Warn).unwrap();
    assert_eq!(
        decoded.object["spec"],
        json!({"size": 1, "color": "red", "free": {"any": 1}, "labels": {"k": "v"}, "parts": [{"id": "a", "n": 3}]})
    );
    let mut warnings = decoded.warnings;
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "unknown field \"bogus\"",
            "unknown field \"metadata.nope\"",
            "unknown field \"spec.parts[0].z\"",
            "unknown field \"spec.x\""
        ]
    );
    let nulls = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {}, "spec": {"size": 1, "name": null, "color": null}});
    let decoded =
        decode(&widget(), &gvk, Input::Json(nulls.to_string().as_bytes()), Validation::Strict).unwrap();
    assert_eq!(decoded.object["spec"], json!({"size": 1, "color": "red"}));
    let strict = decode(&widget(), &gvk, Input::Json(body.as_bytes()), Validation::Strict).unwrap_err();
    assert!(
        strict.message.starts_with(
            "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field"
        ),
        "{}",
        strict.message
    );
}

#[test]
fn schemas_that_are_not_structural() {
    let table = [
        (json!({}), "s.type: Required value: must not be empty at the root"),
        (
            json!({"type": "object", "properties": {"a": {}}}),
            "s.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            "s.properties[a].items: Required value: must be specified",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "text"}}}),
            "s.properties[a].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (
            json!({"type": "object", "properties": {}, "additionalProperties": true}),
            "s.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (json!({"type": "object", "$ref": "x"}), "s.$ref: Forbidden: $ref is not supported"),
    ];
    for (schema, words) in table {
        let errors = parse(&schema, &Path::new("s")).unwrap_err();
        assert!(errors.iter().any(|e| e.to_string() == words), "{schema}: {errors:?}");
    }
    let mut unfit = json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}});
    assert!(parse(&unfit, &Path::new("s")).is_err());
    unfit["properties"]["a"] = json!({"type": "object", "default": {"b": 1}});
    assert!(parse(&unfit, &Path::new("s")).is_err());
    let mut deep = json!({"type": "object"});
    for _ in 0..100 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    assert!(parse(&deep, &Path::new("s")).is_err());
}
