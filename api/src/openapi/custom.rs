//! Schemas of custom resources, as their definitions state them.

use serde_json::{Map, Value, json};

use super::OpenapiResource;
use super::paths::Flavor;
use super::schemas::reference;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// The types of the table that custom resources refer to.
pub(super) const TYPES: [&str; 2] = [OBJECT_META, LIST_META];

/// The name of the definition of a kind: `com.example.v1.Widget`; `suffix` is `List` or nothing.
pub(super) fn name(r: &OpenapiResource, suffix: &str) -> String {
    let group: Vec<&str> = r.gvk.group.rsplit('.').collect();
    format!("{}.{}.{}{suffix}", group.join("."), r.gvk.version, r.gvk.kind)
}

/// The definitions of all custom resources among these.
pub(super) fn definitions(resources: &[&OpenapiResource], flavor: Flavor) -> Map<String, Value> {
    let mut out = Map::new();
    for r in resources.iter().filter(|r| r.subresource.is_none()) {
        let Some(schema) = &r.custom else { continue };
        out.insert(name(r, ""), object(r, schema, flavor));
        out.insert(name(r, "List"), list(r, flavor));
    }
    out
}

fn text(words: &str) -> Value {
    json!({"type": "string", "description": words})
}

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const METADATA: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

fn gvk(r: &OpenapiResource, suffix: &str) -> Value {
    json!([{"group": r.gvk.group, "version": r.gvk.version, "kind": format!("{}{suffix}", r.gvk.kind)}])
}

/// A reference with words beside it, which version 3 allows only around it.
fn described(name: &str, words: &str, flavor: Flavor) -> Value {
    let mut inner = reference(name, flavor);
    match flavor {
        Flavor::V3 => json!({"allOf": [inner], "description": words}),
        Flavor::V2 => {
            inner["description"] = words.into();
            inner
        }
    }
}

fn object(r: &OpenapiResource, schema: &Value, flavor: Flavor) -> Value {
    let mut out = schema.clone();
    if flavor == Flavor::V2 {
        for_v2(&mut out);
    }
    let Some(map) = out.as_object_mut() else { return json!({"type": "object"}) };
    let properties = map.entry("properties").or_insert_with(|| json!({}));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert("apiVersion".into(), text(API_VERSION));
        properties.insert("kind".into(), text(KIND));
        properties.insert("metadata".into(), described(OBJECT_META, METADATA, flavor));
    }
    map.insert("x-kubernetes-group-version-kind".into(), gvk(r, ""));
    out
}

fn list(r: &OpenapiResource, flavor: Flavor) -> Value {
    let items = json!({"type": "array", "items": reference(&name(r, ""), flavor), "description": format!("List of {}.", r.plural)});
    json!({
        "type": "object",
        "description": format!("{}List is a list of {}", r.gvk.kind, r.gvk.kind),
        "required": ["items"],
        "properties": {
            "apiVersion": text(API_VERSION),
            "kind": text(KIND),
            "metadata": described(LIST_META, METADATA, flavor),
            "items": items,
        },
        "x-kubernetes-group-version-kind": gvk(r, "List"),
    })
}

/// Leaves out what version 2 cannot say.
fn for_v2(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for name in ["oneOf", "anyOf", "allOf", "not", "nullable", "default", "x-kubernetes-validations"] {
        map.remove(name);
    }
    if map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        for name in ["type", "properties", "items", "additionalProperties"] {
            map.remove(name);
        }
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(name) {
            for_v2(inner);
        }
    }
    for inner in
        map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut)
    {
        for_v2(inner);
    }
}
