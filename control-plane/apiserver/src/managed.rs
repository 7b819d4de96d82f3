//! Who owns which field of an object: `metadata.managedFields` on every write.

use coracle_api::apply::{self, Node, Operation, Scope, Writer};
use coracle_api::{meta, schema, time};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::call::Target;
use crate::resource::ResourceDef;
use crate::state::Served;

const MANAGED: &str = "managedFields";

/// The type of a resource's objects; `None` where nothing is known of it, and nothing is tracked.
pub(crate) fn node(served: &Served) -> Option<Node<'_>> {
    node_of(&served.def)
}

fn node_of(def: &ResourceDef) -> Option<Node<'_>> {
    match &def.schema {
        Some(schema) => Some(Node::Object(schema)),
        None => schema::for_gvk(&def.gvk()).map(Node::Type),
    }
}

/// Records that a part of the server itself changed the status.
pub(crate) fn status_changed(def: &ResourceDef, manager: &str, at: Timestamp, old: &Value, new: &mut Value) {
    let Some(node) = node_of(def) else { return };
    let entries = old.pointer("/metadata/managedFields").and_then(apply::decode).unwrap_or_default();
    if entries.is_empty() {
        return;
    }
    let writer = Writer {
        manager: manager.to_owned(),
        operation: Operation::Update,
        api_version: def.api_version(),
        subresource: "status".into(),
        time: time::seconds(at),
    };
    let entries = apply::after_update(node, old, new, entries, &writer, Scope::Status);
    put(new, apply::encode(entries));
}

/// An object of the resource before anybody set anything.
pub(crate) fn blank(served: &Served) -> Value {
    let none = json!({});
    match (&served.def.schema, schema::for_gvk(&served.gvk)) {
        (None, Some(ty)) => schema::decode_value(ty, &none).map(|(object, _)| object).unwrap_or(none),
        _ => none,
    }
}

/// The top-level fields that a call may change.
pub(crate) fn scope(target: &Target) -> Scope {
    match target.cx.subresource.as_deref() {
        Some("status") => Scope::Status,
        Some("scale") => Scope::Spec,
        _ if target.served.def.strategy.has_status() => Scope::AllButStatus,
        _ => Scope::Everything,
    }
}

/// Who makes a call. A scale is recorded without a time, as Kubernetes does.
pub(crate) fn writer(target: &Target, operation: Operation) -> Writer {
    let scale = target.cx.subresource.as_deref() == Some("scale");
    Writer {
        manager: target.cx.field_manager.clone(),
        operation,
        api_version: target.served.api_version.clone(),
        subresource: target.cx.subresource.clone().unwrap_or_default(),
        time: if scale { String::new() } else { time::seconds(target.cx.now) },
    }
}

/// Takes `managedFields` out of an object.
pub(crate) fn take(obj: &mut Value) -> Option<Value> {
    meta::remove_metadata(obj, MANAGED)
}

/// Puts `managedFields` into an object.
pub(crate) fn put(obj: &mut Value, list: Option<Value>) {
    match list {
        Some(list) => meta::set_metadata(obj, MANAGED, list),
        None => drop(take(obj)),
    }
}

/// Records a create: who sends managed fields along keeps them.
pub(crate) fn created(target: &Target, obj: &mut Value) {
    let given = take(obj);
    let Some(node) = node(&target.served) else { return };
    let entries = given.as_ref().and_then(apply::decode).unwrap_or_default();
    let writer = writer(target, Operation::Update);
    let entries = apply::after_update(node, &target.served.blank, obj, entries, &writer, scope(target));
    put(obj, apply::encode(entries));
}

/// Records an update. What the caller says of managed fields counts, but not through a subresource.
pub(crate) fn updated(target: &Target, old: &Value, new: &mut Value) {
    let given = take(new);
    let Some(node) = node(&target.served) else { return };
    let live = || old.pointer("/metadata/managedFields").and_then(apply::decode).unwrap_or_default();
    let entries = match given {
        _ if target.cx.subresource.is_some() => live(),
        // How a caller asks to forget all managers.
        Some(list) if is_reset(&list) => Vec::new(),
        Some(list) => apply::decode(&list).filter(|e| !e.is_empty()).unwrap_or_else(live),
        None => live(),
    };
    // Nobody owns anything of an object that was not tracked from its beginning.
    if entries.is_empty() {
        return;
    }
    let writer = writer(target, Operation::Update);
    let entries = apply::after_update(node, old, new, entries, &writer, scope(target));
    put(new, apply::encode(entries));
}

fn is_reset(list: &Value) -> bool {
    match list.as_array().map(Vec::as_slice) {
        Some([one]) => {
            one.as_object().is_some_and(|e| e.values().all(|v| v.is_null() || v == "" || *v == json!({})))
        }
        _ => false,
    }
}

/// Makes a write that changed nothing but times of managers one that changed nothing.
pub(crate) fn ignore_times(new: &mut Value, old: &Value) {
    let path = "/metadata/managedFields";
    let (Some(is), Some(was)) = (new.pointer(path), old.pointer(path)) else { return };
    if is == was || !apply::same_but_times(is, was) {
        return;
    }
    let was = was.clone();
    let is = take(new);
    put(new, Some(was));
    if new != old {
        put(new, is);
    }
}
