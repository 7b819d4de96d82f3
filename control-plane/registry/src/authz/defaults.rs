//! Roles and bindings that every cluster has: Kubernetes' own (`default_roles.jsonl`, one a line) and a few of ours.
//!
//! They are created where they are missing, and get back what was taken from them at every start, unless their annotation
//! `rbac.authorization.kubernetes.io/autoupdate` says `false`.

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

fn role(name: &str, rules: Value) -> Value {
    json!({"kind": "ClusterRole", "name": name, "rules": rules})
}

fn binding(name: &str, role: &str, groups: &[&str]) -> Value {
    let subjects: Vec<Value> =
        groups.iter().map(|g| json!({"kind": "Group", "name": g, "apiGroup": GROUP})).collect();
    json!({"kind": "ClusterRoleBinding", "name": name, "subjects": subjects,
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role}})
}

/// A role of a controller that Kubernetes does not have, bound to its service account.
fn controller(name: &str, rules: Value) -> [Value; 2] {
    let full = format!("system:controller:{name}");
    let bound = json!({"kind": "ClusterRoleBinding", "name": full,
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}],
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": full}});
    [role(&full, rules), bound]
}

/// What Kubernetes leaves to the tool that sets a cluster up.
fn own() -> Vec<Value> {
    const CSR: &str = "certificates.k8s.io";
    let read = json!(["get", "list", "watch"]);
    let mut own = vec![
        // kube-public is there to be read by all, `cluster-info` above all.
        json!({"kind": "Role", "namespace": "kube-public", "name": "coracle:public-reader",
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": read}]}),
        json!({"kind": "RoleBinding", "namespace": "kube-public", "name": "coracle:public-reader",
            "subjects": [
                {"kind": "Group", "name": "system:authenticated", "apiGroup": GROUP},
                {"kind": "Group", "name": "system:unauthenticated", "apiGroup": GROUP},
            ],
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "coracle:public-reader"}}),
        // Joining: ask for a certificate, have it approved, and have it renewed.
        binding("coracle:node-bootstrap", "system:node-bootstrapper", &["system:bootstrappers"]),
        binding(
            "coracle:node-autoapprove-bootstrap",
            &format!("system:{CSR}:certificatesigningrequests:nodeclient"),
            &["system:bootstrappers"],
        ),
        binding(
            "coracle:node-autoapprove-renewal",
            &format!("system:{CSR}:certificatesigningrequests:selfnodeclient"),
            &["system:nodes"],
        ),
        json!({"kind": "ClusterRoleBinding", "name": "coracle:node-serving-approver",
            "subjects": [{"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"}],
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": format!("system:{CSR}:kubelet-serving-approver")}}),
        // The part of a node that routes to Services and enforces policies sees them all, and the pods behind them.
        role(
            "coracle:node-network",
            json!([
                {"apiGroups": [""], "resources": ["services", "endpoints", "namespaces", "nodes", "pods"], "verbs": read},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": read},
                {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies", "ingresses", "ingressclasses"], "verbs": read},
                {"apiGroups": ["networking.internal.knative.dev"], "resources": ["ingresses"], "verbs": read},
                {"apiGroups": ["networking.internal.knative.dev"], "resources": ["ingresses"], "verbs": read},
            ]),
        ),
        binding("coracle:node-network", "coracle:node-network", &["system:nodes"]),
        // Servers that join prove themselves by the secret that they send.
        role("coracle:join", json!([{"nonResourceURLs": ["/coracle/join"], "verbs": ["post"]}])),
        binding("coracle:join", "coracle:join", &["system:authenticated", "system:unauthenticated"]),
        // A server that joins shows a secret of its own.
        role("coracle:join", json!([{"nonResourceURLs": ["/coracle/join"], "verbs": ["post"]}])),
        binding("coracle:join", "coracle:join", &["system:authenticated", "system:unauthenticated"]),
        // The files of the web page, which hold nothing of the cluster.
        role("coracle:ui", json!([{"nonResourceURLs": ["/ui", "/ui/*"], "verbs": ["get", "head"]}])),
        binding("coracle:ui", "coracle:ui", &["system:authenticated", "system:unauthenticated"]),
        // The built-in registry of images.
        role(
            "coracle:image-puller",
            json!([{"nonResourceURLs": ["/v2", "/v2/*"], "verbs": ["get", "head"]}]),
        ),
        role("coracle:image-pusher", json!([{"nonResourceURLs": ["/v2", "/v2/*"], "verbs": ["*"]}])),
        binding(
            "coracle:image-puller",
            "coracle:image-puller",
            &["system:nodes", crate::authn::image_token::GROUP],
        ),
        role(
            "coracle:image-token",
            json!([{"nonResourceURLs": [crate::authn::image_token::PATH], "verbs": ["get"]}]),
        ),
        binding("coracle:image-token", "coracle:image-token", &["system:nodes"]),
    ];
    own.extend(controllers());
    own
}

/// Controllers of ours, each with what it needs. Adding one is a line here.
fn controllers() -> Vec<Value> {
    let mut all = Vec::new();
    let mut add = |name: &str, rules: Value| all.extend(controller(name, rules));
    let write = json!(["get", "list", "watch", "create", "update", "patch", "delete"]);
    let read = json!(["get", "list", "watch"]);
    add(
        "metrics-server",
        json!([
            {"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": read},
            {"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]},
        ]),
    );
    add(
        "serverless-controller",
        json!([
            {"apiGroups": ["serving.knative.dev", "networking.internal.knative.dev"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["apiextensions.k8s.io"], "resources": ["customresourcedefinitions"], "verbs": ["get", "list", "watch", "create", "update", "patch"]},
            {"apiGroups": ["apps"], "resources": ["deployments", "deployments/scale"], "verbs": write},
            {"apiGroups": [""], "resources": ["services"], "verbs": write},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": write},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"], "verbs": read},
            {"apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["update", "patch"]},
            {"apiGroups": [""], "resources": ["nodes", "pods", "namespaces"], "verbs": read},
            // What the gateways measure.
            {"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]},
            {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch", "update"]},
        ]),
    );
    all
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
