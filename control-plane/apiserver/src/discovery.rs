//! Discovery: which groups, versions and resources there are. Everything here derives from the registered resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::header::HeaderValue;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::delegate::{self, Delegated};
use crate::negotiate::{Accepted, Encoding, Form};
use crate::resource::{ResourceDef, Subresource};
use crate::{codec, respond};

/// Documents by path, made once.
pub(crate) struct Discovery {
    plain: BTreeMap<String, Document>,
    /// `/api` and `/apis`, aggregated.
    aggregated: BTreeMap<String, Document>,
}

struct Document {
    value: Value,
    bytes: Bytes,
}

impl Document {
    fn new(value: Value) -> Self {
        Self { bytes: codec::to_bytes(&value), value }
    }
}

/// Groups in the order in which their resources were registered: clients that look for a short name take the first.
type Groups<'a> = Vec<(&'a str, BTreeMap<Version<'a>, Vec<&'a ResourceDef>>)>;

/// Versions sort as clients prefer them: v2, v1, v1beta2, v1alpha1.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Version<'a>(&'a str);

impl Version<'_> {
    fn rank(&self) -> (i32, i64, i64) {
        let rest = self.0.strip_prefix('v').unwrap_or("");
        let (major, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let stability = if tail.starts_with("alpha") { 2 } else { i32::from(tail.starts_with("beta")) };
        let minor = tail.trim_start_matches(char::is_alphabetic).parse().unwrap_or(0);
        (stability, -major.parse().unwrap_or(0), -minor)
    }
}

impl Ord for Version<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank()).then(self.0.cmp(other.0))
    }
}

impl PartialOrd for Version<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Discovery {
    /// The documents for these resources; `address` is what clients in any network are told to use.
    pub fn new(resources: &[Arc<ResourceDef>], address: &str) -> Self {
        let mut groups: Groups<'_> = Vec::new();
        for def in resources {
            let known = groups.iter().position(|(name, _)| *name == def.group);
            let at = known.unwrap_or(groups.len());
            if known.is_none() {
                groups.push((def.group.as_str(), BTreeMap::new()));
            }
            if let Some((_, versions)) = groups.get_mut(at) {
                versions.entry(Version(&def.version)).or_default().push(def);
            }
        }
        for (_, versions) in &mut groups {
            versions.values_mut().for_each(|defs| defs.sort_by(|a, b| a.plural.cmp(&b.plural)));
        }
        let mut plain = BTreeMap::new();
        let mut add = |path: String, value: Value| {
            plain.insert(path, Document::new(value));
        };
        let core = groups.iter().find(|(name, _)| name.is_empty());
        let core: Vec<&str> = core.into_iter().flat_map(|(_, v)| v.keys().map(|v| v.0)).collect();
        add(
            "/api".into(),
            json!({
                "kind": "APIVersions", "versions": core,
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
            }),
        );
        let named = || groups.iter().filter(|(name, _)| !name.is_empty());
        let list: Vec<Value> = named().map(|(name, versions)| group(name, versions)).collect();
        add("/apis".into(), json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": list}));
        for (name, versions) in &groups {
            if !name.is_empty() {
                let mut one = group(name, versions);
                if let Some(map) = one.as_object_mut() {
                    map.insert("kind".into(), "APIGroup".into());
                    map.insert("apiVersion".into(), "v1".into());
                }
                add(format!("/apis/{name}"), one);
            }
            for (version, defs) in versions {
                let (path, group_version) = match *name {
                    "" => (format!("/api/{}", version.0), version.0.to_owned()),
                    name => (format!("/apis/{name}/{}", version.0), format!("{name}/{}", version.0)),
                };
                add(path, resource_list(&group_version, defs));
            }
        }
        let aggregate = |wanted: bool| {
            let chosen = groups.iter().filter(|(name, _)| name.is_empty() == wanted);
            let items: Vec<Value> = chosen.map(|(name, versions)| aggregated_group(name, versions)).collect();
            Document::new(
                json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}),
            )
        };
        let aggregated =
            [("/api".to_owned(), aggregate(true)), ("/apis".to_owned(), aggregate(false))].into();
        Self { plain, aggregated }
    }

    /// The document at a path, if there is one, with what other servers serve.
    pub fn serve(&self, path: &str, accepted: &Accepted, others: &[Delegated]) -> Option<Response<Body>> {
        let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
        if !others.is_empty()
            && let Some(answer) = self.with_others(path, accepted, others)
        {
            return Some(answer);
        }
        if let (Form::Discovery(version), Some(document)) = (&accepted.form, self.aggregated.get(path)) {
            return Some(aggregated_answer(document, version));
        }
        let document = self.plain.get(path)?;
        Some(match accepted.encoding {
            Encoding::Json => respond::json_bytes(StatusCode::OK, document.bytes.clone()),
            Encoding::Yaml => respond::encoded(StatusCode::OK, Encoding::Yaml, &document.value),
        })
    }

    fn with_others(&self, path: &str, accepted: &Accepted, others: &[Delegated]) -> Option<Response<Body>> {
        let document = if path == "/apis" {
            if let (Form::Discovery(version), Some(document)) = (&accepted.form, self.aggregated.get(path)) {
                let merged = Document::new(delegate::aggregated(&document.value, others));
                return Some(aggregated_answer(&merged, version));
            }
            delegate::groups(&self.plain.get(path)?.value, others)
        } else {
            let name = path.strip_prefix("/apis/").filter(|name| !name.contains('/'))?;
            if !others.iter().any(|other| other.group == name) {
                return None;
            }
            delegate::group(name, self.plain.get(path).map(|d| &d.value), others)?
        };
        Some(respond::encoded(StatusCode::OK, accepted.encoding, &document))
    }

    /// Every path that answers.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.plain.keys().map(String::as_str)
    }
}

fn aggregated_answer(document: &Document, version: &str) -> Response<Body> {
    let bytes = if version == "v2" {
        document.bytes.clone()
    } else {
        let mut value = document.value.clone();
        if let Some(map) = value.as_object_mut() {
            map.insert("apiVersion".into(), format!("apidiscovery.k8s.io/{version}").into());
        }
        codec::to_bytes(&value)
    };
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let content_type =
        HeaderValue::from_str(&content_type).unwrap_or(HeaderValue::from_static("application/json"));
    let mut response = respond::with_type(StatusCode::OK, content_type, bytes);
    response.headers_mut().insert(http::header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn group(name: &str, versions: &BTreeMap<Version<'_>, Vec<&ResourceDef>>) -> Value {
    let entry = |v: &Version<'_>| json!({"groupVersion": format!("{name}/{}", v.0), "version": v.0});
    let all: Vec<Value> = versions.keys().map(entry).collect();
    json!({"name": name, "preferredVersion": all.first(), "versions": all})
}

fn resource_list(group_version: &str, defs: &[&ResourceDef]) -> Value {
    let mut resources = Vec::new();
    for def in defs {
        let mut entry = Map::new();
        entry.insert("name".into(), def.plural.as_str().into());
        entry.insert("singularName".into(), def.singular.as_str().into());
        entry.insert("namespaced".into(), def.namespaced.into());
        entry.insert("kind".into(), def.kind.as_str().into());
        entry.insert("verbs".into(), sorted(&def.verbs));
        if !def.short_names.is_empty() {
            entry.insert("shortNames".into(), json!(def.short_names));
        }
        if !def.categories.is_empty() {
            entry.insert("categories".into(), json!(def.categories));
        }
        if def.has_verb("list") {
            entry.insert("storageVersionHash".into(), storage_hash(def).into());
        }
        resources.push(Value::Object(entry));
        let mut subresources: Vec<&Subresource> = def.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        resources.extend(subresources.into_iter().map(|s| subresource(def, s)));
    }
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

fn subresource(def: &ResourceDef, sub: &Subresource) -> Value {
    let mut entry = Map::new();
    entry.insert("name".into(), format!("{}/{}", def.plural, sub.name).into());
    entry.insert("singularName".into(), "".into());
    entry.insert("namespaced".into(), def.namespaced.into());
    entry.insert("kind".into(), sub.kind.as_str().into());
    entry.insert("verbs".into(), sorted(&sub.verbs));
    if let Some((group, version)) = &sub.group_version {
        entry.insert("group".into(), group.as_str().into());
        entry.insert("version".into(), version.as_str().into());
    }
    Value::Object(entry)
}

fn sorted(verbs: &[String]) -> Value {
    let mut verbs = verbs.to_vec();
    verbs.sort();
    json!(verbs)
}

/// Eight bytes of a digest of group, version and kind, in base64.
fn storage_hash(def: &ResourceDef) -> String {
    use base64::Engine;
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(format!("{}/{}/{}", def.group, def.version, def.kind));
    base64::engine::general_purpose::STANDARD.encode(digest.get(..8).unwrap_or_default())
}

fn aggregated_group(name: &str, versions: &BTreeMap<Version<'_>, Vec<&ResourceDef>>) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|(version, defs)| {
            let resources: Vec<Value> = defs.iter().map(|def| aggregated_resource(def)).collect();
            json!({"version": version.0, "freshness": "Current", "resources": resources})
        })
        .collect();
    let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(def: &ResourceDef) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut entry = Map::new();
    entry.insert("resource".into(), def.plural.as_str().into());
    entry.insert("responseKind".into(), kind(&def.group, &def.version, &def.kind));
    entry.insert("scope".into(), if def.namespaced { "Namespaced" } else { "Cluster" }.into());
    entry.insert("singularResource".into(), def.singular.as_str().into());
    entry.insert("verbs".into(), sorted(&def.verbs));
    if !def.short_names.is_empty() {
        entry.insert("shortNames".into(), json!(def.short_names));
    }
    if !def.categories.is_empty() {
        entry.insert("categories".into(), json!(def.categories));
    }
    let mut subresources: Vec<&Subresource> = def.subresources.iter().collect();
    subresources.sort_by(|a, b| a.name.cmp(&b.name));
    let subresources: Vec<Value> = subresources
        .into_iter()
        .map(|sub| {
            let (group, version) = match &sub.group_version {
                Some((group, version)) => (group.as_str(), version.as_str()),
                None => (def.group.as_str(), def.version.as_str()),
            };
            json!({"subresource": sub.name, "responseKind": kind(group, version, &sub.kind), "verbs": sorted(&sub.verbs)})
        })
        .collect();
    if !subresources.is_empty() {
        entry.insert("subresources".into(), subresources.into());
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_preference() {
        let mut versions = ["v1alpha1", "v1", "v2beta1", "v2", "v1beta2", "v1beta1"].map(Version);
        versions.sort();
        assert_eq!(versions.map(|v| v.0), ["v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1"]);
    }
}
