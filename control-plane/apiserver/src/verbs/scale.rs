//! The `scale` subresource: `autoscaling/v1` Scale over a resource's own fields.

use axum::body::Body;
use coracle_api::apply::{Operation, Scope};
use coracle_api::field::{Error, Path};
use coracle_api::{Gvk, Status, labels, meta};
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::call::{Call, Target};
use crate::decode::{self, PatchBody};
use crate::query::WriteOptions;
use crate::resource::ScalePaths;
use crate::write::{Rules, Written, apply as write_applied, update as write};
use crate::{codec, managed, respond, validate};

/// Reads or changes the scale.
pub(crate) async fn scale(call: Call, paths: ScalePaths) -> Result<Response<Body>, Status> {
    if call.cx.verb == "get" {
        let kv = call.fetch().await?;
        let obj = codec::decode(&call.served.def, &kv).map_err(crate::errors::corrupt)?;
        return respond::object(&call, StatusCode::OK, &of(&obj, &paths));
    }
    let options = WriteOptions::of(&call.query);
    let body = call.body.clone();
    let written = if decode::is_apply(&call) && call.cx.verb == "patch" {
        validate::write_options(&options, "PatchOptions", true)?;
        apply(&call, &paths, options.force == Some(true)).await?
    } else if call.cx.verb == "patch" {
        let patch = PatchBody::read(&call, &body)?;
        validate::write_options(&options, "PatchOptions", false)?;
        let gvk = Gvk::new("autoscaling", "v1", "Scale");
        write(&call.target, &Rules::Main, |old| {
            let new = patch.apply(&of(old, &paths), &gvk)?;
            change(&call.target, old, &new, &paths)
        })
        .await?
    } else {
        validate::write_options(&options, "UpdateOptions", false)?;
        let scale = read(&call, &body)?;
        write(&call.target, &Rules::Main, |old| change(&call.target, old, &scale, &paths)).await?
    };
    respond::object(&call, StatusCode::OK, &of(&written.obj, &paths))
}

/// Applies a scale: the replicas, as a configuration of the whole object would.
async fn apply(call: &Call, paths: &ScalePaths, force: bool) -> Result<Written, Status> {
    let document = coracle_api::yaml::one_document(&call.body)
        .map_err(|e| Status::bad_request(format!("error decoding YAML: {e}")))?;
    let scale = document.value;
    let mut config = json!({"metadata": {"name": call.name()}});
    meta::set_gvk(&mut config, &call.served.gvk);
    if let Some(replicas) = scale.pointer("/spec/replicas") {
        set(&mut config, &paths.spec_replicas, replicas.clone());
    }
    let writer = managed::writer(&call.target, Operation::Apply);
    write_applied(&call.target, &Rules::Main, |old| {
        let (_, list) = super::apply::merged(call, old, true, &config, &writer, Scope::Spec, force)?;
        let mut new = change(&call.target, old, &scale, paths)?;
        managed::put(&mut new, list);
        Ok(new)
    })
    .await
}

fn read(call: &Call, body: &[u8]) -> Result<Value, Status> {
    let scale = decode::plain(call, body)?;
    let kind = scale.get("kind").and_then(Value::as_str).unwrap_or("Scale");
    if kind != "Scale" {
        let gvk = Gvk::of(&scale);
        return Err(Status::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a Scale: converting ({}.{kind}) to (autoscaling.Scale): unknown conversion",
            gvk.version, gvk.version
        )));
    }
    Ok(scale)
}

/// The object with the replicas of a scale.
fn change(target: &Target, old: &Value, scale: &Value, paths: &ScalePaths) -> Result<Value, Status> {
    if let Some(name) = meta::name(scale).filter(|n| *n != target.name()) {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name()
        )));
    }
    let replicas = match scale.pointer("/spec/replicas") {
        None | Some(Value::Null) => 0,
        Some(n) => n
            .as_i64()
            .filter(|n| i32::try_from(*n).is_ok())
            .ok_or_else(|| Status::bad_request("spec.replicas must be an integer"))?,
    };
    if replicas < 0 {
        let error = Error::invalid(
            &Path::new("spec").child("replicas"),
            replicas,
            "must be greater than or equal to 0",
        );
        return Err(Status::invalid(&Gvk::new("autoscaling", "v1", "Scale"), target.name(), vec![error]));
    }
    let mut new = old.clone();
    set(&mut new, &paths.spec_replicas, replicas.into());
    match meta::resource_version(scale) {
        Some(version) => meta::set_metadata(&mut new, "resourceVersion", version),
        None => {
            meta::remove_metadata(&mut new, "resourceVersion");
        }
    }
    if let Some(uid) = meta::uid(scale) {
        meta::set_uid(&mut new, uid);
    }
    Ok(new)
}

/// Takes the wanted replicas of a scale over into its object.
pub(crate) fn put_replicas(obj: &mut Value, scale: &Value, paths: &ScalePaths) {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    if obj.pointer(&paths.spec_replicas).and_then(Value::as_i64).unwrap_or(0) != replicas {
        set(obj, &paths.spec_replicas, replicas.into());
    }
}

/// Sets a value at a JSON pointer, making objects on the way.
fn set(obj: &mut Value, pointer: &str, value: Value) {
    let mut at = obj;
    for part in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Some(map) = at.as_object_mut() else { return };
        at = map.entry(part.to_owned()).or_insert(Value::Null);
    }
    *at = value;
}

/// The Scale of an object.
pub(crate) fn of(obj: &Value, paths: &ScalePaths) -> Value {
    let mut metadata = Map::new();
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = obj.pointer("/metadata").and_then(|m| m.get(name)) {
            metadata.insert(name.into(), value.clone());
        }
    }
    let number = |pointer: &str| obj.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut spec = Map::new();
    // Zero is left out, as Kubernetes' encoder does.
    if number(&paths.spec_replicas) != 0 {
        spec.insert("replicas".into(), number(&paths.spec_replicas).into());
    }
    let mut status = Map::new();
    status.insert("replicas".into(), number(&paths.status_replicas).into());
    if let Some(selector) = obj.pointer(&paths.selector).and_then(selector) {
        status.insert("selector".into(), selector.into());
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// The query form of a selector object, or of the plain map that old kinds have. Pairs are written `key=value`.
fn selector(value: &Value) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned()).filter(|s| !s.is_empty());
    }
    let map = value.as_object()?;
    let is_selector = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    if !is_selector {
        return Some(labels::Selector::from_map(map).to_string()).filter(|s| !s.is_empty());
    }
    let selector = labels::Selector::from_label_selector(value).ok()?;
    let pair = |key: &str, values: &[String]| {
        let wanted = map.get("matchLabels").and_then(|m| m.get(key)).and_then(Value::as_str)?;
        (values == [wanted]).then(|| format!("{key}={wanted}"))
    };
    let text = |r: &labels::Requirement| pair(r.key(), r.values()).unwrap_or_else(|| r.to_string());
    let parts: Vec<String> = selector.requirements().iter().map(text).collect();
    Some(parts.join(",")).filter(|s| !s.is_empty())
}
