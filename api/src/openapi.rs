//! OpenAPI documents of what a server serves: v3 per group and version, v2 for all. kubectl reads them for validation, for
//! `explain` and for the merge keys of `apply`; types come from the schema table, descriptions from k8s-openapi.

mod custom;
mod descriptions;
mod gnostic;
mod merged;
mod paths;
mod schemas;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::meta::Gvk;
use paths::Flavor;

pub use merged::Foreign;

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
    /// The schema of a custom resource, as its definition states it; `None` where the table of types has the kind.
    pub custom: Option<Arc<Value>>,
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
    let mut schemas = schemas::closure(used, Flavor::V3);
    schemas.extend(custom::definitions(&here, Flavor::V3));
    let document = json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"BearerToken": security()}},
    });
    document.to_string().into_bytes()
}

/// The index at `/openapi/v3`, as JSON bytes, from the path (`apis/apps/v1`) and a hash of each document, so that clients may
/// keep documents.
pub fn v3_index<'a>(documents: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let entry = |(path, hash): (&str, &str)| {
        (path.to_owned(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}))
    };
    let paths: BTreeMap<String, Value> = documents.map(entry).collect();
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

/// Both forms of the OpenAPI v2 document, JSON first, with what other servers say of their groups.
pub fn v2_merged(served: &[OpenapiResource], others: &[Foreign<'_>]) -> (Vec<u8>, Vec<u8>) {
    let mut document = v2(served);
    others.iter().for_each(|other| merged::merge(&mut document, other));
    (document.to_string().into_bytes(), gnostic::encode(&document))
}

fn v2(served: &[OpenapiResource]) -> Value {
    let all: Vec<&OpenapiResource> = served.iter().collect();
    let mut used = BTreeSet::new();
    let paths = all_paths(&all, Flavor::V2, &mut used);
    let mut definitions = schemas::closure(used, Flavor::V2);
    definitions.extend(custom::definitions(&all, Flavor::V2));
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": paths,
        "definitions": definitions,
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

#[cfg(test)]
mod tests;
