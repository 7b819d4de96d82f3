//! Roles and bindings that every cluster has: Kubernetes' own (`default_roles.jsonl`, one a line) and a few of ours.
//!
//! They are created where they are missing, and get back what was taken from them at every start, unless their annotation
//! `rbac.authorization.kubernetes.io/autoupdate` says `false`.

mod own;

use std::collections::HashMap;

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::ApiServer;
use futures::{StreamExt, TryStreamExt, stream};
use http::Method;
use serde_json::{Value, json};

use super::escalation::GROUP;
use super::rules::{self, Rule};
use crate::bootstrap::call;
use crate::check::selector_matches;
use crate::value::{at, items, items_mut, list, present, text};
use own::own;

const TABLE: &str = include_str!("default_roles.jsonl");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
/// Most writes at a time; they share what it costs to reach the disk.
const AT_ONCE: usize = 64;

/// Every default role and binding, as the API takes it.
pub fn all() -> Vec<Value> {
    let mut all: Vec<Value> =
        TABLE.lines().filter_map(|line| serde_json::from_str(line).ok()).chain(own()).map(complete).collect();
    // As often as they nest: `admin` takes in `edit`, which takes in `view`.
    for _ in 0..3 {
        let aggregated: Vec<(usize, Value)> = all
            .iter()
            .enumerate()
            .filter(|(_, role)| present(role, "/aggregationRule"))
            .map(|(i, role)| (i, aggregate(role, &all)))
            .collect();
        for (i, rules) in aggregated {
            if let Some(role) = all.get_mut(i) {
                crate::value::set(role, "rules", rules);
            }
        }
    }
    all
}

/// The rules of all roles that an aggregated role selects, each once.
fn aggregate(role: &Value, all: &[Value]) -> Value {
    let mut rules: Vec<Value> = Vec::new();
    for other in all.iter().filter(|o| text(o, "/kind") == "ClusterRole" && !std::ptr::eq(*o, role)) {
        let labels = at(other, "/metadata/labels");
        let selected = items(role, "/aggregationRule/clusterRoleSelectors")
            .iter()
            .any(|selector| selector_matches(selector, labels));
        for rule in items(other, "/rules").iter().filter(|_| selected) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules.into()
}

/// The rules of Kubernetes' role `system:node`.
pub fn node_rules() -> Vec<Rule> {
    let lines = TABLE.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let role =
        lines.into_iter().find(|o| text(o, "/kind") == "ClusterRole" && text(o, "/name") == "system:node");
    role.as_ref().map(Rule::of_role).unwrap_or_default()
}

/// A line of the table as an object of the API.
fn complete(line: Value) -> Value {
    let mut metadata = json!({
        "name": text(&line, "/name"),
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    });
    if present(&line, "/namespace") {
        metadata["namespace"] = at(&line, "/namespace").clone();
    }
    if present(&line, "/aggregateTo") {
        let label = format!("{GROUP}/aggregate-to-{}", text(&line, "/aggregateTo"));
        metadata["labels"][label] = "true".into();
    }
    let mut out =
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": text(&line, "/kind"), "metadata": metadata});
    for key in ["rules", "aggregationRule", "roleRef", "subjects"] {
        if let Some(value) = line.get(key) {
            out[key] = value.clone();
        }
    }
    if text(&line, "/name").starts_with("system:controller:") {
        patches(&mut out);
    }
    out
}

/// Our controllers patch where Kubernetes' update: who may update may patch.
fn patches(role: &mut Value) {
    for rule in items_mut(role, "rules") {
        let verbs = items(rule, "/verbs");
        if verbs.iter().any(|v| v == "update")
            && !verbs.iter().any(|v| v == "patch")
            && let Some(verbs) = list(rule, "verbs")
        {
            verbs.push("patch".into());
        }
    }
}

/// What is to be written for a default object so that it is there and whole; `None` where nothing is.
fn wanted(default: &Value, found: Option<&Value>) -> Option<Value> {
    let Some(found) = found else { return Some(default.clone()) };
    if meta::annotation(found, AUTOUPDATE) != Some("true") {
        return None;
    }
    let mut new = found.clone();
    let mut changed = false;
    let lacking: Vec<Value> = match text(default, "/kind") {
        _ if present(default, "/aggregationRule") => Vec::new(),
        "ClusterRole" | "Role" => {
            let held = Rule::of_role(found);
            let rules = items(default, "/rules").iter();
            rules
                .filter(|rule| {
                    let one = Rule::of_role(&json!({"rules": [rule]}));
                    !rules::missing(&held, &one).is_empty()
                })
                .cloned()
                .collect()
        }
        _ => {
            let named = items(found, "/subjects");
            items(default, "/subjects").iter().filter(|s| !named.contains(s)).cloned().collect()
        }
    };
    let key = if text(default, "/kind").ends_with("Binding") { "subjects" } else { "rules" };
    if !lacking.is_empty() {
        let all: Vec<Value> = items(found, &format!("/{key}")).iter().cloned().chain(lacking).collect();
        new[key] = all.into();
        changed = true;
    }
    for (label, value) in meta::labels(default) {
        if meta::label(found, label) != Some(value) {
            meta::set_label(&mut new, label, value);
            changed = true;
        }
    }
    changed.then_some(new)
}

fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

fn collection(object: &Value) -> String {
    let plural = plural(text(object, "/kind"));
    match meta::namespace(object) {
        Some(namespace) => format!("/apis/{GROUP}/v1/namespaces/{namespace}/{plural}"),
        None => format!("/apis/{GROUP}/v1/{plural}"),
    }
}

/// Creates what is missing and mends what was changed. Safe to repeat, also by several servers at once.
///
/// # Errors
/// The first answer of the server that is no success and says neither that the object exists nor that somebody else wrote it.
pub async fn reconcile(server: &ApiServer) -> Result<(), Status> {
    let mut found: HashMap<String, Value> = HashMap::new();
    for kind in ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"] {
        let objects = server.objects().list(GROUP, &plural(kind), None).await?;
        for object in objects {
            let name = meta::name(&object).unwrap_or_default();
            found.insert(format!("{kind} {} {name}", meta::namespace(&object).unwrap_or_default()), object);
        }
    }
    let writes = all().into_iter().filter_map(|default| {
        let (kind, name) = (text(&default, "/kind").to_owned(), meta::name(&default).unwrap_or_default());
        let key = format!("{kind} {} {name}", meta::namespace(&default).unwrap_or_default());
        let found = found.get(&key);
        wanted(&default, found).map(|object| (found.is_some(), object))
    });
    let writes: Vec<(bool, Value)> = writes.collect();
    stream::iter(writes)
        .map(|(exists, object)| async move {
            let path = collection(&object);
            let written = if exists {
                let path = format!("{path}/{}", meta::name(&object).unwrap_or_default());
                call(server, Method::PUT, &path, Some(&object)).await
            } else {
                call(server, Method::POST, &path, Some(&object)).await
            };
            match written {
                Err(status) if !status.is_already_exists() && !status.is_conflict() => Err(status),
                _ => Ok(()),
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let lines = TABLE.lines().count();
        assert_eq!(all().len(), lines + own().len());
        assert!(all().iter().all(|o| meta::name(o).is_some_and(|n| !n.is_empty())));
        let rules = |name: &str| {
            let all = all();
            all.iter()
                .filter(|o| text(o, "/kind") == "ClusterRole")
                .find(|o| meta::name(o) == Some(name))
                .map(Rule::of_role)
        };
        let (admin, view) = (rules("admin").unwrap(), rules("view").unwrap());
        assert!(!view.is_empty());
        assert_eq!(rules::missing(&admin, &view), "", "admin takes in view through edit");
        assert!(!node_rules().is_empty());
    }

    #[test]
    fn what_was_taken_is_given_back() {
        let all = all();
        let role = all.iter().find(|o| meta::name(o) == Some("system:discovery")).unwrap();
        assert_eq!(wanted(role, None).as_ref(), Some(role));
        assert_eq!(wanted(role, Some(role)), None);
        let mut poor = role.clone();
        poor["rules"] = json!([{"verbs": ["get"], "nonResourceURLs": ["/mine"]}]);
        let mended = wanted(role, Some(&poor)).unwrap();
        assert_eq!(items(&mended, "/rules").len(), 1 + items(role, "/rules").len());
        poor["metadata"]["annotations"][AUTOUPDATE] = "false".into();
        assert_eq!(wanted(role, Some(&poor)), None);
    }
}
