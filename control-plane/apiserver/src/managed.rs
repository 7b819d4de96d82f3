//! Who owns which field of an object: `metadata.managedFields` on every write.

use std::sync::Arc;

use coracle_api::apply::{self, Form, Node, OneVersion, Operation, Scope, Versions, Writer};
use coracle_api::{meta, schema, time};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::call::Target;
use crate::catalog::Catalog;
use crate::codec;
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

/// The versions in which the objects of a resource are served.
pub(crate) struct Siblings {
    catalog: Arc<Catalog>,
    def: Arc<ResourceDef>,
}

impl Siblings {
    /// Those of the resource that a call is about.
    pub fn of(target: &Target) -> Self {
        Self { catalog: target.shared.catalog.load_full(), def: target.served.def.clone() }
    }

    fn find(&self, api_version: &str) -> Option<&ResourceDef> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = &self.catalog.find(group, version, &self.def.plural)?.def;
        (found.prefix() == self.def.prefix()).then_some(found.as_ref())
    }
}

impl Versions for Siblings {
    fn form(&self, api_version: &str) -> Form<'_> {
        if api_version == self.def.api_version() {
            return Form::Same;
        }
        match self.find(api_version) {
            None => Form::Gone,
            Some(def) => node_of(def).map_or(Form::Same, Form::Other),
        }
    }

    fn convert(&self, obj: &Value, from: &str, to: &str) -> Option<Value> {
        let (from, to) = (self.find(from)?, self.find(to)?);
        // Nothing is nothing in every version.
        if meta::name(obj).is_none() {
            return Some(json!({}));
        }
        let mut obj = obj.clone();
        // What is not stored yet must not be taken for what is stored under its revision.
        let revision = meta::remove_metadata(&mut obj, "resourceVersion");
        let mut converted = codec::convert(from, to, &obj)
            .inspect_err(|why| tracing::warn!(%why.message, "fields of another version are not compared"))
            .ok()?;
        if let Some(revision) = revision {
            meta::set_metadata(&mut converted, "resourceVersion", revision);
        }
        Some(converted)
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
    let entries = apply::after_update(node, &OneVersion, old, new, entries, &writer, Scope::Status);
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
    let entries = apply::after_update(
        node,
        &Siblings::of(target),
        &target.served.blank,
        obj,
        entries,
        &writer,
        scope(target),
    );
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
    let entries = apply::after_update(node, &Siblings::of(target), old, new, entries, &writer, scope(target));
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
