//! OpenAPI documents of what a server serves: v3 per group and version, v2 for all. kubectl reads them for validation, for
//! `explain` and for the merge keys of `apply`; types come from the schema table, descriptions from k8s-openapi.

mod descriptions;
mod gnostic;
mod paths;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::meta::Gvk;
use paths::Flavor;

/// One resource or subresource that is served.
#[derive(Clone, Debug)]
pub struct OpenapiResource {
    /// The kind of its objects; for a subresource, of its body (`Scale`).
    pub gvk: Gvk,
    /// The group whose path it is under; differs from that of `gvk` for some subresources.
    pub group: String,
    /// The version whose path it is under.
    pub version: String,
    /// `pods`
    pub plural: String,
    /// `status`, `scale`; `None` for the resource itself.
    pub subresource: Option<String>,
    pub namespaced: bool,
    /// Kubernetes' verbs: `get list watch create update patch delete deletecollection`.
    pub verbs: Vec<String>,
}

impl OpenapiResource {
    /// `/api/v1` or `/apis/apps/v1`
    fn root(&self) -> String {
        format!("/{}", group_path(&self.group, &self.version))
    }
}

fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": "v1.36.2"})
}

/// The OpenAPI v3 document of a group and version (`("", "v1")`, `("apps", "v1")`), as JSON bytes.
pub fn v3(group: &str, version: &str, served: &[OpenapiResource]) -> Vec<u8> {
    let here: Vec<&OpenapiResource> =
        served.iter().filter(|r| r.group == group && r.version == version).collect();
    let mut used = BTreeSet::new();
    let paths = all_paths(&here, Flavor::V3, &mut used);
    let schemas = schemas::closure(used, Flavor::V3);
    let document = json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": security()}},
    });
    document.to_string().into_bytes()
}

/// The index at `/openapi/v3`, as JSON bytes. Each address carries a hash, so that clients may keep the document.
pub fn v3_index(served: &[OpenapiResource]) -> Vec<u8> {
    let groups: BTreeSet<(&str, &str)> =
        served.iter().map(|r| (r.group.as_str(), r.version.as_str())).collect();
    let entry = |(group, version): (&str, &str)| {
        let path = group_path(group, version);
        let hash = fingerprint(&v3(group, version, served));
        let address = format!("/openapi/v3/{path}?hash={hash:016X}");
        (path, json!({"serverRelativeURL": address}))
    };
    let paths: BTreeMap<String, Value> = groups.into_iter().map(entry).collect();
    json!({"paths": paths}).to_string().into_bytes()
}

/// The OpenAPI v2 document at `/openapi/v2`, as JSON bytes.
pub fn v2_json(served: &[OpenapiResource]) -> Vec<u8> {
    v2(served).to_string().into_bytes()
}

/// The OpenAPI v2 document as gnostic protobuf: `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
pub fn v2_protobuf(served: &[OpenapiResource]) -> Vec<u8> {
    gnostic::encode(&v2(served))
}

fn v2(served: &[OpenapiResource]) -> Value {
    let all: Vec<&OpenapiResource> = served.iter().collect();
    let mut used = BTreeSet::new();
    let paths = all_paths(&all, Flavor::V2, &mut used);
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": schemas::closure(used, Flavor::V2),
        "securityDefinitions": {"BearerToken": security()},
        "security": [{"BearerToken": []}],
    })
}

fn security() -> Value {
    json!({"description": "Bearer Token authentication", "in": "header", "name": "authorization", "type": "apiKey"})
}

fn all_paths(
    resources: &[&OpenapiResource],
    flavor: Flavor,
    used: &mut BTreeSet<String>,
) -> Map<String, Value> {
    let mut out = Map::new();
    for resource in resources {
        for (path, item) in paths::of(resource, flavor, used) {
            match out.get_mut(&path).and_then(Value::as_object_mut) {
                Some(there) => there.extend(item),
                None => drop(out.insert(path, Value::Object(item))),
            }
        }
    }
    out
}

// FNV-1a: a fingerprint for caches, nothing more.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
