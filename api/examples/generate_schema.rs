//! Writes `src/schema/table.json` from an OpenAPI v2 document of Kubernetes without prose.
//!
//! `cargo run -p coracle-api --example generate_schema [path of openapi-1.36.2.json]`
//!
//! OpenAPI does not tell how a field vanishes when it is empty (Go's `omitempty`, pointers, structs held by value), but a
//! client sees it: `resources: {}` comes back, `hostNetwork: false` does not. Those facts are the lists below.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

/// Optional scalars that Go holds by pointer: an explicit zero is kept.
const POINTERS: &str = include_str!("generate_schema/pointers.txt");
/// Fields that are written even when nobody set them.
const ALWAYS: &str = include_str!("generate_schema/always.txt");
/// Defaults that the OpenAPI of version 3 states and that of version 2 does not.
const DEFAULTS: &str = include_str!("generate_schema/defaults.txt");
/// Definitions of kinds that Kubernetes serves when it is asked to, and so are in no document that was read off it.
const ALPHA: &str = include_str!("generate_schema/alpha.json");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let home = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let input = std::env::args().nth(1).map(PathBuf::from);
    let input = input.unwrap_or_else(|| home.join("../../shared/facts/openapi-1.36.2.json"));
    let document: Value = serde_json::from_slice(&std::fs::read(&input)?)?;
    let mut definitions: BTreeMap<String, Value> = serde_json::from_value(document["definitions"].clone())?;
    definitions.extend(serde_json::from_str::<BTreeMap<String, Value>>(ALPHA)?);

    let mut lines = Vec::new();
    for (name, definition) in &definitions {
        lines.push(format!("{}:{}", json!(name), one_type(name, definition)?));
    }
    let table = format!("{{\n{}\n}}\n", lines.join(",\n"));
    serde_json::from_str::<Value>(&table)?;
    let output = home.join("src/schema/table.json");
    std::fs::write(&output, table)?;
    eprintln!("{} types written to {}", definitions.len(), output.display());
    Ok(())
}

fn one_type(name: &str, definition: &Value) -> Result<Value, serde_json::Error> {
    let mut out = Map::new();
    if let Some(gvks) = definition["x-kubernetes-group-version-kind"].as_array() {
        let gvk = |g: &Value| json!([g["group"], g["version"], g["kind"]]);
        out.insert("gvk".into(), gvks.iter().map(gvk).collect());
    }
    if definition["x-kubernetes-map-type"] == "atomic" {
        out.insert("atomic".into(), true.into());
    }
    let short = name.rsplit('.').next().unwrap_or(name);
    let has_gvk = out.contains_key("gvk");
    let required: Vec<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(properties) = definition["properties"].as_object() {
        let mut fields = BTreeMap::new();
        for (field, schema) in properties {
            let mut entry = schema_of(schema);
            let here = format!("{short}.{field}");
            let required = required.contains(&field.as_str());
            let by_value = schema["$ref"]
                .as_str()
                .is_some_and(|r| r.ends_with(".ObjectMeta") || r.ends_with(".ListMeta"))
                || (has_gvk && matches!(field.as_str(), "spec" | "status") && schema["$ref"].is_string());
            if required {
                entry.insert("required".into(), true.into());
            }
            if required || by_value || listed(ALWAYS, &here) {
                entry.insert("always".into(), true.into());
            }
            if listed(POINTERS, &here) || (name.contains(".api.resource.") && !required) {
                entry.insert("pointer".into(), true.into());
            }
            if let Some(default) = default_of(&here)? {
                entry.insert("default".into(), default);
            }
            fields.insert(field.clone(), Value::Object(entry));
        }
        out.insert("fields".into(), json!(fields));
    } else {
        out.insert("is".into(), kind_of_leaf(name).into());
    }
    Ok(Value::Object(out))
}

fn default_of(entry: &str) -> Result<Option<Value>, serde_json::Error> {
    let line = DEFAULTS.lines().find_map(|l| l.split_once(' ').filter(|(name, _)| *name == entry));
    line.map(|(_, json)| serde_json::from_str(json)).transpose()
}

fn listed(list: &str, entry: &str) -> bool {
    list.lines().filter(|l| !l.starts_with('#')).flat_map(str::split_whitespace).any(|l| l == entry)
}

fn kind_of_leaf(name: &str) -> &'static str {
    match name.rsplit('.').next().unwrap_or(name) {
        "Quantity" => "quantity",
        "IntOrString" => "int-or-string",
        "Time" => "time",
        "MicroTime" => "micro-time",
        "CustomResourceSubresourceStatus" => "object",
        _ => "any",
    }
}

fn schema_of(schema: &Value) -> Map<String, Value> {
    let mut out = Map::new();
    let kind: Value = match (schema["$ref"].as_str(), schema["type"].as_str(), schema["format"].as_str()) {
        (Some(r), _, _) => r.trim_start_matches("#/definitions/").into(),
        (_, Some("string"), Some("byte")) => "bytes".into(),
        (_, Some("string"), _) => "string".into(),
        (_, Some("boolean"), _) => "boolean".into(),
        (_, Some("number"), _) => "number".into(),
        (_, Some("integer"), Some("int32")) => "int32".into(),
        (_, Some("integer"), _) => "int64".into(),
        (_, Some("array"), _) => json!({"list": schema_of(&schema["items"])}),
        (_, Some("object"), _) if schema["additionalProperties"].is_object() => {
            json!({"map": schema_of(&schema["additionalProperties"])})
        }
        _ => "any".into(),
    };
    out.insert("is".into(), kind);
    for (from, to) in [
        ("x-kubernetes-list-type", "listType"),
        ("x-kubernetes-list-map-keys", "listMapKeys"),
        ("x-kubernetes-map-type", "mapType"),
        ("x-kubernetes-patch-strategy", "patchStrategy"),
        ("x-kubernetes-patch-merge-key", "patchMergeKey"),
        ("default", "default"),
        ("enum", "enum"),
    ] {
        if let Some(value) = schema.get(from) {
            out.insert(to.into(), value.clone());
        }
    }
    out
}
