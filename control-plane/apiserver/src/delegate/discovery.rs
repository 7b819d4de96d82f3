//! Discovery documents with what other servers serve.

use serde_json::{Map, Value, json};

use super::Delegated;

/// The list of groups with those of others. Versions that others serve take the place of those served here.
pub(crate) fn groups(document: &Value, others: &[Delegated]) -> Value {
    let mut document = document.clone();
    if let Some(list) = document.get_mut("groups").and_then(Value::as_array_mut) {
        for other in others {
            let known = list.iter_mut().find(|g| g.get("name").is_some_and(|n| *n == other.group));
            match known {
                Some(group) => add_version(group, other),
                None => list.push(new_group(other)),
            }
        }
    }
    document
}

/// One group with the versions of others; `None` where nobody serves it.
pub(crate) fn group(name: &str, document: Option<&Value>, others: &[Delegated]) -> Option<Value> {
    let mut group = document.cloned();
    for other in others.iter().filter(|o| o.group == name) {
        match &mut group {
            Some(group) => add_version(group, other),
            None => group = Some(new_group(other)),
        }
    }
    let mut group = group?;
    let map = group.as_object_mut()?;
    map.insert("kind".into(), "APIGroup".into());
    map.insert("apiVersion".into(), "v1".into());
    Some(group)
}

fn version_of(other: &Delegated) -> Value {
    json!({"groupVersion": format!("{}/{}", other.group, other.version), "version": other.version})
}

fn new_group(other: &Delegated) -> Value {
    let version = version_of(other);
    json!({"name": other.group, "preferredVersion": version, "versions": [version]})
}

fn add_version(group: &mut Value, other: &Delegated) {
    let version = version_of(other);
    if let Some(versions) = group.get_mut("versions").and_then(Value::as_array_mut)
        && !versions.contains(&version)
    {
        versions.push(version);
    }
}

/// The aggregated document with the groups of others.
pub(crate) fn aggregated(document: &Value, others: &[Delegated]) -> Value {
    let mut document = document.clone();
    if let Some(items) = document.get_mut("items").and_then(Value::as_array_mut) {
        for other in others {
            let of = |item: &Value| item.pointer("/metadata/name").is_some_and(|n| *n == other.group);
            let entry = version_entry(other);
            let known = items.iter_mut().find(|item| of(item)).and_then(|item| item.get_mut("versions"));
            match known.and_then(Value::as_array_mut) {
                Some(versions) => {
                    versions.retain(|v| v.get("version").is_none_or(|v| *v != other.version));
                    versions.push(entry);
                }
                None => items.push(json!({"metadata": {"name": other.group}, "versions": [entry]})),
            }
        }
    }
    document
}

fn version_entry(other: &Delegated) -> Value {
    let listed = other.resources.get("resources").and_then(Value::as_array);
    let freshness = if listed.is_some() { "Current" } else { "Stale" };
    let text = |v: &Value, key: &str| v.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut resources: Vec<Map<String, Value>> = Vec::new();
    for one in listed.into_iter().flatten() {
        let or = |own: String, default: &str| if own.is_empty() { default.to_owned() } else { own };
        let kind = json!({
            "group": or(text(one, "group"), &other.group), "version": or(text(one, "version"), &other.version),
            "kind": text(one, "kind"),
        });
        let name = text(one, "name");
        let verbs = one.get("verbs").cloned().unwrap_or_else(|| json!([]));
        let namespaced = one.get("namespaced").and_then(Value::as_bool).unwrap_or_default();
        let mut entry = Map::new();
        entry.insert("responseKind".into(), kind);
        entry.insert("verbs".into(), verbs);
        if let Some((main, sub)) = name.split_once('/') {
            entry.insert("subresource".into(), sub.into());
            let main = resources.iter_mut().find(|r| r.get("resource").is_some_and(|r| r == main));
            let subs = main.map(|m| m.entry("subresources").or_insert_with(|| json!([])));
            if let Some(subs) = subs.and_then(Value::as_array_mut) {
                subs.push(entry.into());
            }
            continue;
        }
        entry.insert("resource".into(), name.into());
        entry.insert("scope".into(), if namespaced { "Namespaced" } else { "Cluster" }.into());
        entry.insert("singularResource".into(), text(one, "singularName").into());
        for key in ["shortNames", "categories"] {
            if let Some(names) = one.get(key) {
                entry.insert(key.into(), names.clone());
            }
        }
        resources.push(entry);
    }
    json!({"version": other.version, "freshness": freshness, "resources": resources})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(resources: Value) -> Delegated {
        Delegated { group: "g.example.com".into(), version: "v1".into(), resources, ..Delegated::default() }
    }

    #[test]
    fn lists_become_aggregated_entries() {
        let list = json!({"resources": [
            {"name": "things", "singularName": "thing", "namespaced": true, "kind": "Thing", "verbs": ["get"], "shortNames": ["th"]},
            {"name": "things/status", "namespaced": true, "kind": "Thing", "verbs": ["get", "update"]},
        ]});
        let merged = aggregated(&json!({"items": [{"metadata": {}, "versions": []}]}), &[other(list)]);
        let version = &merged["items"][1]["versions"][0];
        assert_eq!(merged["items"][1]["metadata"]["name"], "g.example.com");
        assert_eq!((&version["version"], &version["freshness"]), (&json!("v1"), &json!("Current")));
        let thing = &version["resources"][0];
        assert_eq!((&thing["resource"], &thing["scope"]), (&json!("things"), &json!("Namespaced")));
        assert_eq!(thing["subresources"][0]["subresource"], "status");
        assert_eq!(
            thing["responseKind"],
            json!({"group": "g.example.com", "version": "v1", "kind": "Thing"})
        );
        let stale = aggregated(&json!({"items": []}), &[other(Value::Null)]);
        assert_eq!(stale["items"][0]["versions"][0]["freshness"], "Stale");
    }

    #[test]
    fn groups_have_the_versions_of_all() {
        let here = json!({"groups": [{"name": "g.example.com", "versions": [
            {"groupVersion": "g.example.com/v2", "version": "v2"}]}]});
        let merged = groups(&here, &[other(Value::Null)]);
        assert_eq!(merged["groups"][0]["versions"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            group("g.example.com", None, &[other(Value::Null)]).unwrap()["preferredVersion"]["version"],
            "v1"
        );
        assert_eq!(group("other", None, &[other(Value::Null)]), None);
    }
}
