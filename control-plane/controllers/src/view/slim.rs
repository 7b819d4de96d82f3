//! Metadata without `managedFields`: they are half of most objects, and nobody here reads them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::Resource;
use kube::core::{ApiResource, DynamicObject, DynamicResourceScope, ObjectMeta};
use serde::{Deserialize, Deserializer};

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Slim {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_grace_period_seconds: Option<i64>,
    deletion_timestamp: Option<Time>,
    finalizers: Option<Vec<String>>,
    generate_name: Option<String>,
    generation: Option<i64>,
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    uid: Option<String>,
}

/// Reads metadata and passes over its `managedFields`.
///
/// # Errors
/// What the format says of it.
pub fn slim<'de, D: Deserializer<'de>>(source: D) -> Result<ObjectMeta, D::Error> {
    let meta = Slim::deserialize(source)?;
    Ok(ObjectMeta {
        annotations: meta.annotations,
        creation_timestamp: meta.creation_timestamp,
        deletion_grace_period_seconds: meta.deletion_grace_period_seconds,
        deletion_timestamp: meta.deletion_timestamp,
        finalizers: meta.finalizers,
        generate_name: meta.generate_name,
        generation: meta.generation,
        labels: meta.labels,
        managed_fields: None,
        name: meta.name,
        namespace: meta.namespace,
        owner_references: meta.owner_references,
        resource_version: meta.resource_version,
        self_link: None,
        uid: meta.uid,
    })
}

/// Any object, of which only the metadata is read.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Head {
    #[serde(deserialize_with = "slim")]
    pub metadata: ObjectMeta,
}

impl Resource for Head {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::kind(of)
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::group(of)
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::version(of)
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        DynamicObject::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn everything_but_managed_fields_is_kept() {
        let whole = json!({
            "annotations": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 3,
            "deletionTimestamp": "2026-01-01T00:00:01Z", "finalizers": ["f"], "generateName": "g-", "generation": 2,
            "labels": {"l": "m"}, "name": "g-1", "namespace": "n", "resourceVersion": "7", "uid": "u",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "o", "controller": true}],
        });
        let mut managed = whole.clone();
        managed["managedFields"] = json!([{"manager": "m", "operation": "Update", "fieldsV1": {"f:a": {}}}]);
        assert_eq!(serde_json::to_value(slim(&managed).unwrap()).unwrap(), whole);
    }
}
