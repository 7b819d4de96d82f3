//! The kinds that a server serves, with what the manifests say of each.

use serde_json::{Value, json};

use super::client::Client;

/// A resource and its object.
pub struct Kind {
    /// `apps/v1/deployments`
    pub resource: String,
    /// Path of the list, in the namespace `default` for kinds that have one: `/apis/apps/v1/namespaces/default/deployments`.
    pub path: String,
    /// Path of the resource: `/apis/apps/v1/deployments`.
    pub plain: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub has_status: bool,
    /// A valid object; null where the manifests have none.
    pub object: Value,
    /// A merge patch of what a client may change; null for nothing.
    pub change: Value,
    /// A merge patch of the status.
    pub status: Value,
    second: Value,
}

fn manifests() -> Vec<Value> {
    let text = include_str!("manifests.yaml");
    coracle_api::yaml::to_json_documents(text).expect("manifests")
}

impl Kind {
    /// Every kind, in the order of discovery.
    pub async fn served(client: &Client) -> Vec<Self> {
        let manifests = manifests();
        let mut kinds = Vec::new();
        for path in group_versions(client).await {
            let (code, list) = client.get(&path).await;
            assert_eq!(code, 200, "{path}");
            let resources = list["resources"].as_array().expect("resources").clone();
            for resource in resources.iter().filter(|r| !text(r, "name").contains('/')) {
                let has_status =
                    resources.iter().any(|r| text(r, "name") == format!("{}/status", text(resource, "name")));
                let group_version = text(&list, "groupVersion");
                let kind = Self::of(&path, &group_version, resource, has_status, &manifests);
                // Questions about a cluster's own health have no object.
                if kind.verbs.iter().any(|v| v == "create") {
                    kinds.push(kind);
                }
            }
        }
        kinds
    }

    fn of(path: &str, group_version: &str, entry: &Value, has_status: bool, manifests: &[Value]) -> Self {
        let name = text(entry, "name");
        let resource = format!("{group_version}/{name}");
        let manifest = manifests.iter().find(|m| m["resource"] == resource.as_str());
        let of = |key: &str| manifest.map_or(Value::Null, |m| m[key].clone());
        let namespaced = entry["namespaced"] == true;
        let scope = if namespaced { "/namespaces/default" } else { "" };
        Self {
            path: format!("{path}{scope}/{name}"),
            plain: format!("{path}/{name}"),
            namespaced,
            verbs: entry["verbs"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|v| v.as_str().unwrap_or("").into())
                .collect(),
            has_status,
            object: of("object"),
            change: of("change"),
            status: of("status"),
            second: of("second"),
            resource,
        }
    }

    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or("")
    }

    /// The path of the object.
    pub fn at(&self) -> String {
        format!("{}/{}", self.path, self.name())
    }

    pub fn has(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// Another object of the kind, and its name.
    pub fn another(&self) -> (Value, String) {
        let mut object = self.object.clone();
        object["metadata"]["name"] = format!("{}-second", self.name()).into();
        if !self.second.is_null() {
            merge(&mut object, &self.second);
        }
        let name = object["metadata"]["name"].as_str().unwrap_or("").to_owned();
        (object, name)
    }

    /// Type and name of the object, and these labels.
    pub fn labelled(&self, labels: Value) -> Value {
        json!({
            "apiVersion": self.object["apiVersion"], "kind": self.object["kind"],
            "metadata": {"name": self.name(), "labels": labels},
        })
    }
}

/// The paths of every group and version.
pub async fn group_versions(client: &Client) -> Vec<String> {
    let (_, groups) = client.get("/apis").await;
    let groups = groups["groups"].as_array().expect("groups");
    let versions = groups.iter().flat_map(|g| g["versions"].as_array().into_iter().flatten());
    let named = versions.map(|v| format!("/apis/{}", text(v, "groupVersion")));
    std::iter::once("/api/v1".to_owned()).chain(named).collect()
}

/// A string field.
pub fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("").to_owned()
}

/// A JSON merge patch (RFC 7386).
pub fn merge(target: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().expect("object").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// What of `wanted` is not in `found`, as paths. Lists have the same length.
pub fn lacks(path: &str, wanted: &Value, found: &Value, out: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(w), Value::Object(f)) => {
            for (key, value) in w {
                lacks(&format!("{path}/{key}"), value, f.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(w), Value::Array(f)) if w.len() == f.len() => {
            w.iter().zip(f).enumerate().for_each(|(i, (w, f))| lacks(&format!("{path}/{i}"), w, f, out));
        }
        (w, f) if w == f => {}
        (w, f) => out.push(format!("{path}: wanted {w}, found {f}")),
    }
}
