//! Between JSON objects and the bytes in the store.
//!
//! Stored bytes begin with `{"kind":"..","apiVersion":"..",` so that lists can leave both out, as Kubernetes does.

use bytes::Bytes;
use coracle_store::{KeyValue, Value as Stored};
use serde_json::Value;

use crate::resource::ResourceDef;

/// The bytes that every stored object of this kind begins with.
pub(crate) fn head(kind: &str, api_version: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(b"{\"kind\":");
    write_json(&mut out, kind);
    out.extend_from_slice(b",\"apiVersion\":");
    write_json(&mut out, api_version);
    out.push(b',');
    out
}

/// An object as it is stored: without `resourceVersion`, with the place where serving inserts it.
pub(crate) fn encode(obj: &Value) -> Stored {
    let text = |name: &str| obj.get(name).and_then(Value::as_str).unwrap_or("");
    let mut out = head(text("kind"), text("apiVersion"));
    out.extend_from_slice(b"\"metadata\":{");
    let splice = out.len();
    let mut first = true;
    for (name, value) in obj.get("metadata").and_then(Value::as_object).into_iter().flatten() {
        if name != "resourceVersion" {
            member(&mut out, &mut first, name, value);
        }
    }
    out.push(b'}');
    let mut first = false;
    for (name, value) in obj.as_object().into_iter().flatten() {
        if !matches!(name.as_str(), "kind" | "apiVersion" | "metadata") {
            member(&mut out, &mut first, name, value);
        }
    }
    out.push(b'}');
    Stored::spliced(out, u32::try_from(splice).unwrap_or(0))
}

fn member(out: &mut Vec<u8>, first: &mut bool, name: &str, value: &Value) {
    if !std::mem::replace(first, false) {
        out.push(b',');
    }
    write_json(out, name);
    out.push(b':');
    write_json(out, value);
}

fn write_json(out: &mut Vec<u8>, value: impl serde::Serialize) {
    // Writing JSON into memory fails only for maps with keys that are no strings; there are none.
    let _ = serde_json::to_writer(out, &value);
}

/// The object of a stored version, with its `resourceVersion`, in its served form.
pub(crate) fn decode(def: &ResourceDef, kv: &KeyValue) -> Result<Value, DecodeError> {
    decode_at(def, kv, kv.mod_revision)
}

/// The same with another `resourceVersion`, as DELETED events carry.
pub(crate) fn decode_at(def: &ResourceDef, kv: &KeyValue, revision: u64) -> Result<Value, DecodeError> {
    let mut obj = stored(kv)?;
    if def.strategy.converts() {
        def.strategy.read(&mut obj)?;
    }
    set_revision(&mut obj, revision);
    Ok(obj)
}

/// The object of a stored version as it is stored, with its `resourceVersion`.
pub(crate) fn stored(kv: &KeyValue) -> Result<Value, DecodeError> {
    let mut obj: Value = serde_json::from_slice(&kv.value.json)?;
    set_revision(&mut obj, kv.mod_revision);
    Ok(obj)
}

/// Why a stored object cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    /// Its bytes are no JSON.
    #[error(transparent)]
    Corrupt(#[from] serde_json::Error),
    /// It could not be converted.
    #[error(transparent)]
    Conversion(#[from] coracle_api::Status),
}

/// Sets `metadata.resourceVersion`.
pub(crate) fn set_revision(obj: &mut Value, revision: u64) {
    if let Some(metadata) = obj.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("resourceVersion".into(), revision.to_string().into());
    }
}

/// The stored form of a served object.
pub(crate) fn to_stored(def: &ResourceDef, obj: &Value) -> Result<Stored, coracle_api::Status> {
    if def.strategy.converts() {
        let mut stored = obj.clone();
        def.strategy.write(&mut stored)?;
        return Ok(encode(&stored));
    }
    Ok(encode(obj))
}

/// An object that one resource serves as another resource of the same objects serves it.
pub(crate) fn convert(
    from: &ResourceDef,
    to: &ResourceDef,
    obj: &Value,
) -> Result<Value, coracle_api::Status> {
    let mut obj = obj.clone();
    from.strategy.write(&mut obj)?;
    to.strategy.read(&mut obj)?;
    coracle_api::meta::set_gvk(&mut obj, &to.gvk());
    Ok(obj)
}

/// Compact JSON.
pub(crate) fn to_bytes(value: &Value) -> Bytes {
    let mut out = Vec::with_capacity(512);
    write_json(&mut out, value);
    out.into()
}

/// JSON with object members in the order `kind`, `apiVersion`, `metadata`, the rest: what people expect to read.
pub(crate) fn served(obj: &Value) -> Bytes {
    let is_object = obj.get("metadata").is_some_and(Value::is_object) && obj.get("kind").is_some();
    if !is_object {
        return to_bytes(obj);
    }
    let stored = encode(obj);
    match obj.pointer("/metadata/resourceVersion").and_then(Value::as_str).and_then(|v| v.parse().ok()) {
        Some(revision) => stored.with_revision(revision),
        None => stored.json,
    }
}

/// Namespace and name of a stored key under `prefix`.
pub(crate) fn key_parts<'a>(
    def: &ResourceDef,
    prefix_len: usize,
    key: &'a [u8],
) -> (Option<&'a str>, &'a str) {
    let rest = key.get(prefix_len..).and_then(|r| std::str::from_utf8(r).ok()).unwrap_or("");
    match (def.namespaced, rest.split_once('/')) {
        (true, Some((namespace, name))) => (Some(namespace), name),
        _ => (None, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn encoded_objects_take_their_revision() {
        let obj = json!({"apiVersion":"v1","data":{"k":"v"},"kind":"ConfigMap","metadata":{"name":"a","resourceVersion":"9","uid":"u"}});
        let stored = encode(&obj);
        assert_eq!(
            &stored.json[..],
            br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","uid":"u"},"data":{"k":"v"}}"#
        );
        assert_eq!(
            &stored.with_revision(12)[..],
            br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"12","name":"a","uid":"u"},"data":{"k":"v"}}"#
        );
        let found = coracle_store::Value::new(stored.json.clone()).ok();
        assert_eq!(found.map(|v| v.splice), Some(stored.splice));
        assert!(stored.json.starts_with(&head("ConfigMap", "v1")));
        let served: Value = serde_json::from_slice(&served(&obj)).unwrap_or_default();
        assert_eq!(served, obj);
        let bare = encode(&json!({"kind":"X","apiVersion":"v1","metadata":{}}));
        assert!(serde_json::from_slice::<Value>(&bare.with_revision(1)).is_ok());
    }
}
