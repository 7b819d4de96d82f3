//! Types of the schema table as OpenAPI schemas.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::descriptions;
use super::paths::Flavor;
use crate::schema::{self, Kind, ListType, Schema, Type};

/// A `$ref` to a type.
pub(super) fn reference(name: &str, flavor: Flavor) -> Value {
    let place = match flavor {
        Flavor::V2 => "#/definitions/",
        Flavor::V3 => "#/components/schemas/",
    };
    json!({"$ref": format!("{place}{name}")})
}

/// The named types and all that they refer to.
pub(super) fn closure(names: BTreeSet<String>, flavor: Flavor) -> Map<String, Value> {
    let mut out = Map::new();
    let mut open: Vec<&Type> = names.iter().filter_map(|n| schema::by_name(n)).collect();
    while let Some(ty) = open.pop() {
        if out.contains_key(&ty.name) {
            continue;
        }
        out.insert(ty.name.clone(), of_type(ty, flavor));
        for field in &ty.fields {
            references(&field.schema, &mut open);
        }
    }
    out
}

fn references(schema: &Schema, open: &mut Vec<&'static Type>) {
    match &schema.kind {
        Kind::Object(r) => open.push(r.get()),
        Kind::List(item) | Kind::Map(item) => references(item, open),
        _ => {}
    }
}

fn of_type(ty: &Type, flavor: Flavor) -> Value {
    let mut out = match &ty.leaf {
        Some(leaf) => leaf_schema(ty, leaf, flavor),
        None => Map::from_iter([("type".to_string(), json!("object"))]),
    };
    let prose = descriptions::of(&ty.name);
    if let Some(text) = prose.and_then(|p| p.text.as_deref()) {
        out.insert("description".into(), text.into());
    }
    if !ty.fields.is_empty() {
        let mut properties = Map::new();
        for field in &ty.fields {
            let text = prose.and_then(|p| p.fields.get(&field.name)).map(String::as_str);
            properties.insert(field.name.clone(), Value::Object(of_schema(&field.schema, text, flavor)));
        }
        out.insert("properties".into(), Value::Object(properties));
    }
    let required: Vec<&str> = ty.fields.iter().filter(|f| f.required).map(|f| f.name.as_str()).collect();
    if !required.is_empty() {
        out.insert("required".into(), required.into());
    }
    if ty.atomic {
        out.insert("x-kubernetes-map-type".into(), "atomic".into());
    }
    if !ty.gvks.is_empty() {
        let gvk = |g: &crate::Gvk| json!({"group": g.group, "version": g.version, "kind": g.kind});
        out.insert("x-kubernetes-group-version-kind".into(), ty.gvks.iter().map(gvk).collect());
    }
    Value::Object(out)
}

fn leaf_schema(ty: &Type, leaf: &Kind, flavor: Flavor) -> Map<String, Value> {
    let value = match (leaf, flavor) {
        (Kind::Any, _) if matches!(ty.short_name(), "RawExtension" | "FieldsV1" | "Patch") => {
            json!({"type": "object"})
        }
        _ => return plain(leaf, flavor),
    };
    value.as_object().cloned().unwrap_or_default()
}

fn plain(kind: &Kind, flavor: Flavor) -> Map<String, Value> {
    let value = match (kind, flavor) {
        (Kind::String, _) | (Kind::Quantity, Flavor::V2) => json!({"type": "string"}),
        (Kind::Quantity, Flavor::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (Kind::Bytes, _) => json!({"type": "string", "format": "byte"}),
        (Kind::Boolean, _) => json!({"type": "boolean"}),
        (Kind::Int32, _) => json!({"type": "integer", "format": "int32"}),
        (Kind::Int64, _) => json!({"type": "integer", "format": "int64"}),
        (Kind::Number, _) => json!({"type": "number", "format": "double"}),
        (Kind::IntOrString, Flavor::V2) => json!({"type": "string", "format": "int-or-string"}),
        (Kind::IntOrString, Flavor::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (Kind::Time | Kind::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
        (Kind::List(item), _) => json!({"type": "array", "items": of_schema(item, None, flavor)}),
        (Kind::Map(item), _) => {
            json!({"type": "object", "additionalProperties": of_schema(item, None, flavor)})
        }
        (Kind::Object(r), _) => reference(&r.get().name, flavor),
        (Kind::Any, _) => json!({}),
    };
    value.as_object().cloned().unwrap_or_default()
}

fn of_schema(schema: &Schema, description: Option<&str>, flavor: Flavor) -> Map<String, Value> {
    let mut out = plain(&schema.kind, flavor);
    // In v3 nothing may stand beside a `$ref`.
    if flavor == Flavor::V3 && out.contains_key("$ref") && (description.is_some() || schema.default.is_some())
    {
        out = Map::from_iter([("allOf".to_string(), json!([out]))]);
    }
    let mut put = |key: &str, value: Value| drop(out.insert(key.into(), value));
    if let Some(text) = description {
        put("description", text.into());
    }
    if let Some(default) = &schema.default {
        put("default", default.clone());
    }
    if !schema.enum_values.is_empty() {
        put("enum", schema.enum_values.clone().into());
    }
    if let Some(list_type) = schema.list_type {
        let name = match list_type {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map => "map",
        };
        put("x-kubernetes-list-type", name.into());
    }
    if !schema.list_map_keys.is_empty() {
        put("x-kubernetes-list-map-keys", schema.list_map_keys.clone().into());
    }
    if schema.map_atomic {
        put("x-kubernetes-map-type", "atomic".into());
    }
    let strategy = match (schema.patch_merge, schema.patch_retain_keys) {
        (true, true) => Some("merge,retainKeys"),
        (true, false) => Some("merge"),
        (false, true) => Some("retainKeys"),
        (false, false) => None,
    };
    if let Some(strategy) = strategy {
        put("x-kubernetes-patch-strategy", strategy.into());
    }
    if let Some(key) = &schema.patch_merge_key {
        put("x-kubernetes-patch-merge-key", key.as_str().into());
    }
    out
}
