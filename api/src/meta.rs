//! Names of types and resources, and readers and writers of `metadata` on objects that are JSON.

pub mod validation;

use std::fmt;

use serde_json::{Map, Value};

/// A group, version and kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl Gvk {
    pub fn new(group: impl Into<String>, version: impl Into<String>, kind: impl Into<String>) -> Self {
        Gvk { group: group.into(), version: version.into(), kind: kind.into() }
    }

    /// From `apiVersion` (`v1`, `apps/v1`) and `kind`.
    pub fn from_api_version(api_version: &str, kind: impl Into<String>) -> Self {
        let (group, version) = split_api_version(api_version);
        Gvk::new(group, version, kind)
    }

    /// What an object says it is; fields that it lacks are empty.
    pub fn of(object: &Value) -> Self {
        let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
        Gvk::from_api_version(text("apiVersion"), text("kind"))
    }

    /// `v1`, `apps/v1`
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `Pod`, `Deployment.apps`
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.clone() } else { format!("{}.{}", self.kind, self.group) }
    }
}

/// As Kubernetes prints one: `apps/v1, Kind=Deployment`.
impl fmt::Display for Gvk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}, Kind={}", self.group, self.version, self.kind)
    }
}

/// Splits `apps/v1` into group and version; `v1` has the empty group.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// A group and a plural resource; displays as `deployments.apps` or `configmaps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    /// Empty for the core group.
    pub group: String,
    pub resource: String,
}

impl GroupResource {
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        GroupResource { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// `metadata` where it is an object.
pub fn metadata(object: &Value) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

/// `metadata`, made where it is missing. `None` only where `object` is no JSON object or its `metadata` is of another type.
pub fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    object
        .as_object_mut()?
        .entry("metadata")
        .and_modify(|m| {
            if m.is_null() {
                *m = Value::Object(Map::new());
            }
        })
        .or_insert_with(|| Value::Object(Map::new()))
        .as_object_mut()
}

/// A string of `metadata`; an empty one counts as missing.
pub fn metadata_str<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object)?.get(key)?.as_str().filter(|s| !s.is_empty())
}

/// `metadata.name`, unless empty.
pub fn name(object: &Value) -> Option<&str> {
    metadata_str(object, "name")
}

/// `metadata.generateName`, unless empty.
pub fn generate_name(object: &Value) -> Option<&str> {
    metadata_str(object, "generateName")
}

/// `metadata.namespace`, unless empty.
pub fn namespace(object: &Value) -> Option<&str> {
    metadata_str(object, "namespace")
}

/// `metadata.uid`, unless empty.
pub fn uid(object: &Value) -> Option<&str> {
    metadata_str(object, "uid")
}

/// `metadata.resourceVersion`, unless empty.
pub fn resource_version(object: &Value) -> Option<&str> {
    metadata_str(object, "resourceVersion")
}

/// `metadata.deletionTimestamp`, unless empty.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    metadata_str(object, "deletionTimestamp")
}

/// `metadata.creationTimestamp`, unless empty.
pub fn creation_timestamp(object: &Value) -> Option<&str> {
    metadata_str(object, "creationTimestamp")
}

/// `metadata.generation`; 0 where it is missing.
pub fn generation(object: &Value) -> i64 {
    metadata(object).and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
}

fn strings<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
    metadata(object)
        .and_then(|m| m.get(key))
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|m| m.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?))))
}

/// The labels, sorted by key.
pub fn labels(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    strings(object, "labels")
}

/// The value of one label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object)?.get("labels")?.get(key)?.as_str()
}

/// The annotations, sorted by key.
pub fn annotations(object: &Value) -> impl Iterator<Item = (&str, &str)> {
    strings(object, "annotations")
}

/// The value of one annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object)?.get("annotations")?.get(key)?.as_str()
}

/// `metadata.ownerReferences`; empty where there are none.
pub fn owner_references(object: &Value) -> &[Value] {
    metadata(object)
        .and_then(|m| m.get("ownerReferences"))
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// The owner reference that has `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|r| r.get("controller").and_then(Value::as_bool) == Some(true))
}

/// `metadata.finalizers`
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    metadata(object)
        .and_then(|m| m.get("finalizers"))
        .and_then(Value::as_array)
        .into_iter()
        .flat_map(|l| l.iter().filter_map(Value::as_str))
}

/// Sets a field of `metadata`, making `metadata` where it is missing. Does nothing on a value that is no object.
pub fn set_metadata(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert(key.into(), value.into());
    }
}

/// Removes a field of `metadata` and returns it.
pub fn remove_metadata(object: &mut Value, key: &str) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(key)
}

/// Sets `metadata.name`.
pub fn set_name(object: &mut Value, name: &str) {
    set_metadata(object, "name", name);
}

/// Sets `metadata.namespace`.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set_metadata(object, "namespace", namespace);
}

/// Sets `metadata.uid`.
pub fn set_uid(object: &mut Value, uid: &str) {
    set_metadata(object, "uid", uid);
}

/// Sets `metadata.resourceVersion`, or removes it for `None`.
pub fn set_resource_version(object: &mut Value, revision: Option<u64>) {
    match revision {
        Some(revision) => set_metadata(object, "resourceVersion", revision.to_string()),
        None => {
            remove_metadata(object, "resourceVersion");
        }
    }
}

/// Sets `metadata.generation`.
pub fn set_generation(object: &mut Value, generation: i64) {
    set_metadata(object, "generation", generation);
}

/// Sets one label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    set_string(object, "labels", key, value);
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    set_string(object, "annotations", key, value);
}

fn set_string(object: &mut Value, map: &str, key: &str, value: &str) {
    let Some(metadata) = metadata_mut(object) else { return };
    let entry = metadata.entry(map).or_insert_with(|| Value::Object(Map::new()));
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    if let Some(entry) = entry.as_object_mut() {
        entry.insert(key.into(), value.into());
    }
}

/// Sets `metadata.finalizers`; an empty list removes the field.
pub fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    if finalizers.is_empty() {
        remove_metadata(object, "finalizers");
    } else {
        set_metadata(object, "finalizers", finalizers);
    }
}

/// `apiVersion` and `kind` set to those of `gvk`.
pub fn set_gvk(object: &mut Value, gvk: &Gvk) {
    if let Some(object) = object.as_object_mut() {
        object.insert("apiVersion".into(), gvk.api_version().into());
        object.insert("kind".into(), gvk.kind.as_str().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_and_writes_metadata() {
        let mut o = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
        assert_eq!(Gvk::of(&o).group_kind(), "Deployment.apps");
        assert_eq!(name(&o), None);
        set_name(&mut o, "d");
        set_label(&mut o, "a", "b");
        set_resource_version(&mut o, Some(7));
        assert_eq!(name(&o), Some("d"));
        assert_eq!(labels(&o).collect::<Vec<_>>(), [("a", "b")]);
        assert_eq!(resource_version(&o), Some("7"));
        set_resource_version(&mut o, None);
        assert_eq!(resource_version(&o), None);
    }

    #[test]
    fn odd_metadata_is_no_panic() {
        for mut o in [
            json!(null),
            json!([]),
            json!({"metadata": 5}),
            json!({"metadata": {"labels": 3, "ownerReferences": {}}}),
        ] {
            set_name(&mut o, "x");
            set_label(&mut o, "a", "b");
            assert_eq!(labels(&o).count(), 0);
            assert!(owner_references(&o).is_empty());
        }
    }
}
