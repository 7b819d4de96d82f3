//! The contract between the generic server and a kind. Every method has a default, so a strategy says only what differs.

use std::borrow::Cow;

use async_trait::async_trait;
use coracle_api::field;
use coracle_api::status::Status;
use jiff::Timestamp;
use serde_json::Value;

use crate::objects::Objects;
use crate::request::RequestContext;

/// What a strategy's asynchronous hooks may use.
pub struct StrategyContext<'a> {
    /// The call being served. `dry_run` means: allocate nothing that lasts.
    pub request: &'a RequestContext,
    /// Other objects, read from memory.
    pub objects: &'a Objects,
}

/// One column of a Table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// Heading.
    pub name: Cow<'static, str>,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub r#type: Cow<'static, str>,
    /// `name` for the object's name, else usually empty.
    pub format: Cow<'static, str>,
    /// What the column says.
    pub description: Cow<'static, str>,
    /// 0 is always shown, above 0 only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column; `priority` above 0 hides it from narrow output.
    pub const fn new(
        name: &'static str,
        r#type: &'static str,
        format: &'static str,
        description: &'static str,
        priority: i32,
    ) -> Self {
        Self {
            name: Cow::Borrowed(name),
            r#type: Cow::Borrowed(r#type),
            format: Cow::Borrowed(format),
            description: Cow::Borrowed(description),
            priority,
        }
    }
}

/// What a kind adds to the generic server.
///
/// Objects are JSON objects with `apiVersion`, `kind` and `metadata`; the server has already decoded them, set the
/// namespace and checked `metadata`.
#[async_trait]
pub trait Strategy: Send + Sync + 'static {
    /// Sets defaults after decoding (every create, update and patch). Schema defaults are already set.
    fn default(&self, _obj: &mut Value) {}

    /// Last changes before a create is validated: reset status, allocate what only the server may choose.
    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, _obj: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// Called when a create failed after `prepare_for_create` succeeded: give back what it allocated.
    async fn abandon_create(&self, _cx: &StrategyContext<'_>, _obj: &Value) {}

    /// Asynchronous part of an update, before `prepare_for_update` (allocate an address for a changed type).
    async fn prepare_update(
        &self,
        _cx: &StrategyContext<'_>,
        _new: &mut Value,
        _old: &Value,
    ) -> Result<(), Status> {
        Ok(())
    }

    /// Before an update is validated. The default keeps `status` as it was if the resource has a status
    /// subresource (see [`keep_status`]) and raises `metadata.generation` if `spec` changed (see [`bump_generation`]).
    fn prepare_for_update(&self, new: &mut Value, old: &Value) {
        if self.has_status() {
            keep_status(new, old);
        }
        if self.has_generation() {
            bump_generation(new, old);
        }
    }

    /// Before a status update is validated. The default keeps everything of the old object but status and metadata's
    /// labels, annotations, finalizers and owner references, as Kubernetes does (labels are kept from the old).
    fn prepare_for_status_update(&self, new: &mut Value, old: &Value) {
        only_status(new, old);
    }

    /// Whether plain updates keep `status`. Kinds without a status subresource return false.
    fn has_status(&self) -> bool {
        true
    }

    /// Whether `metadata.generation` counts changes of `spec`, from 1.
    fn has_generation(&self) -> bool {
        false
    }

    /// Everything wrong with a new object beyond its metadata.
    fn validate_create(&self, _obj: &Value) -> Vec<field::Error> {
        Vec::new()
    }

    /// Everything wrong with a change, immutability included.
    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<field::Error> {
        self.validate_create(new)
    }

    /// Everything wrong with a status change.
    fn validate_status_update(&self, _new: &Value, _old: &Value) -> Vec<field::Error> {
        Vec::new()
    }

    /// What is wrong with a name; `prefix` is true for `generateName`. The default is a DNS subdomain.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        // A prefix may end in what a whole name may not end in, because letters follow.
        let name = if prefix { name.strip_suffix('-').unwrap_or(name) } else { name };
        coracle_api::meta::validation::dns1123_subdomain(name)
    }

    /// Warnings sent back in `Warning` headers on create and update.
    fn warnings(&self, _obj: &Value) -> Vec<String> {
        Vec::new()
    }

    /// What every call to this version is warned of, where it is deprecated.
    fn deprecation(&self) -> Option<&str> {
        None
    }

    /// Whether objects of this kind are questions: a create is answered and nothing is stored.
    fn is_review(&self) -> bool {
        false
    }

    /// Answers such a question, in the object itself.
    async fn answer(&self, _cx: &StrategyContext<'_>, _obj: &mut Value) -> Result<(), Status> {
        Ok(())
    }

    /// The objects of a kind that is stored nowhere (metrics), of one namespace or of all. None: objects are stored.
    fn computed(&self, _namespace: Option<&str>) -> Option<Vec<Value>> {
        None
    }

    /// Whether an update may create the object (Leases, nodes' status do not; most kinds answer 404).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without `metadata.resourceVersion` is accepted and overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Table columns.
    fn columns(&self) -> &[Column] {
        &crate::tables::DEFAULT_COLUMNS
    }

    /// One cell for each of [`Strategy::columns`].
    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let _ = now;
        crate::tables::default_row(obj)
    }

    /// The value of a selectable field such as `spec.nodeName`; an absent field that is selectable is an empty string.
    fn field(&self, _obj: &Value, _path: &str) -> Option<String> {
        None
    }

    /// Fields that `fieldSelector` accepts beyond `metadata.name` and `metadata.namespace`.
    fn selectable_fields(&self) -> &[&'static str] {
        &[]
    }

    /// The same for fields that are known only when the server runs.
    fn custom_selectable_fields(&self) -> &[String] {
        &[]
    }

    /// All fields of both kinds, in a fixed order.
    fn all_selectable_fields(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        let custom = self.custom_selectable_fields().iter().map(String::as_str);
        Box::new(self.selectable_fields().iter().copied().chain(custom))
    }

    /// A finalizer that a deletion adds, so that something is done before the object is gone.
    fn deletion_finalizer(&self) -> Option<&'static str> {
        None
    }

    /// Seconds of grace for a deletion: `None` when the kind is not deleted gracefully, `Some(0)` for at once.
    fn grace_period(&self, _obj: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Called when `deletionTimestamp` has just been set (a namespace's phase becomes Terminating).
    fn marked_for_deletion(&self, _obj: &mut Value) {}

    /// Whether something beyond `metadata.finalizers` still holds a deleted object (a namespace's spec.finalizers).
    fn held(&self, _obj: &Value) -> bool {
        false
    }

    /// What deletion does to dependents when the caller does not say: true orphans them.
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Whether a delete that removes the object at once answers with the object instead of a Status.
    fn returns_deleted_object(&self) -> bool {
        false
    }

    /// After the object is gone: give back what it held.
    async fn after_delete(&self, _objects: &Objects, _obj: &Value) {}

    /// Whether stored objects differ from served ones (a kind that two groups serve). True turns the byte path off.
    fn converts(&self) -> bool {
        false
    }

    /// From the stored form to the served one.
    #[allow(clippy::wrong_self_convention)] // `from` and `to` are forms, not types.
    fn from_storage(&self, _obj: &mut Value) {}

    /// From the served form to the stored one.
    #[allow(clippy::wrong_self_convention)]
    fn to_storage(&self, _obj: &mut Value) {}

    /// From the stored form (or that of another version) to the served one, where that may fail.
    fn read(&self, obj: &mut Value) -> Result<(), Status> {
        self.from_storage(obj);
        Ok(())
    }

    /// From the served form to the stored one, where that may fail.
    fn write(&self, obj: &mut Value) -> Result<(), Status> {
        self.to_storage(obj);
        Ok(())
    }

    /// Called with objects as they are stored before each of them is read: what is asked elsewhere is asked at once.
    fn prepare_reads(&self, _stored: &mut dyn Iterator<Item = Value>) -> Result<(), Status> {
        Ok(())
    }
}

/// A strategy that adds nothing.
pub struct PlainStrategy;

impl Strategy for PlainStrategy {
    fn has_status(&self) -> bool {
        false
    }
}

/// Makes `new.status` what it was in `old`.
pub fn keep_status(new: &mut Value, old: &Value) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get("status") {
        Some(status) => map.insert("status".into(), status.clone()),
        None => map.remove("status"),
    };
}

/// Raises `metadata.generation` above the old one if anything outside `metadata` and `status` changed.
pub fn bump_generation(new: &mut Value, old: &Value) {
    let changed = {
        let (Some(a), Some(b)) = (new.as_object(), old.as_object()) else { return };
        let keys = a.keys().chain(b.keys());
        keys.into_iter().any(|k| {
            !matches!(k.as_str(), "metadata" | "status" | "apiVersion" | "kind") && a.get(k) != b.get(k)
        })
    };
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    let next = if changed { generation + 1 } else { generation };
    if next > 0
        && let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("generation".into(), next.into());
    }
}

/// Keeps the whole old object but takes the new status (and the new `resourceVersion`, so that conflicts are seen).
pub fn only_status(new: &mut Value, old: &Value) {
    let status = new.get_mut("status").map(Value::take);
    restore(new, old, &["metadata"]);
    if let (Some(metadata), Some(was)) = (new.get_mut("metadata"), old.get("metadata")) {
        restore(metadata, was, &["resourceVersion", "managedFields"]);
    }
    let Some(map) = new.as_object_mut() else { return };
    match status {
        Some(status) => map.insert("status".into(), status),
        None => map.remove("status"),
    };
}

/// Makes an object what it was, but for members of these names that it has. What did not change is not copied.
fn restore(new: &mut Value, old: &Value, own: &[&str]) {
    let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) else { return };
    new.retain(|name, _| own.contains(&name.as_str()) || old.contains_key(name));
    for (name, was) in old {
        match new.get(name) {
            Some(is) if is == was || own.contains(&name.as_str()) => {}
            _ => drop(new.insert(name.clone(), was.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_update_changes_status_alone() {
        let old = json!({"metadata": {"name": "a", "labels": {"l": "1"}, "resourceVersion": "4"}, "spec": {"x": 1}, "status": {"s": 1}});
        let mut new = json!({
            "metadata": {"name": "a", "annotations": {}, "resourceVersion": "3", "managedFields": []},
            "spec": {"x": 2}, "data": {}, "status": {"s": 2},
        });
        only_status(&mut new, &old);
        let metadata =
            json!({"name": "a", "labels": {"l": "1"}, "resourceVersion": "3", "managedFields": []});
        assert_eq!(new, json!({"metadata": metadata, "spec": {"x": 1}, "status": {"s": 2}}));
        let mut none = json!({"metadata": {"name": "a"}});
        only_status(&mut none, &old);
        assert_eq!(none, json!({"metadata": old["metadata"], "spec": {"x": 1}}), "a status may go");
    }
}
