//! The paths of a resource and their operations.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::OpenapiResource;
use super::schemas::reference;
use crate::schema;

/// Which OpenAPI is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    V2,
    V3,
}

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PRODUCES: &[&str] = &["application/json", "application/yaml"];
const STREAMS: &[&str] = &["application/json;stream=watch"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

const READ: &[&str] = &["pretty"];
const WRITE: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const PATCH: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force", "pretty"];
const DELETE: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "pretty", "propagationPolicy"];
const LIST: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "pretty",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE_ALL: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "pretty",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
const LOG: &[&str] = &[
    "container",
    "follow",
    "insecureSkipTLSVerifyBackend",
    "limitBytes",
    "pretty",
    "previous",
    "sinceSeconds",
    "stream",
    "tailLines",
    "timestamps",
];

type Item = Map<String, Value>;

/// The path items of a resource or subresource. Names of the types that they use are added to `used`.
pub(super) fn of(r: &OpenapiResource, flavor: Flavor, used: &mut BTreeSet<String>) -> Vec<(String, Item)> {
    let root = r.root();
    let scope = if r.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", r.plural);
    let parameters: &[&str] = if r.namespaced { &["namespace"] } else { &[] };
    let mut write = Writer { r, flavor, used };
    let mut out = Vec::new();
    if r.subresource.is_none() {
        let mut item = Item::new();
        write.operation(&mut item, "list", "get", "list", LIST, Some("List"), None);
        write.operation(&mut item, "create", "post", "post", WRITE, None, Some(""));
        write.operation(
            &mut item,
            "deletecollection",
            "delete",
            "deletecollection",
            DELETE_ALL,
            Some("Status"),
            Some("DeleteOptions"),
        );
        out.push((collection.clone(), write.with_parameters(item, parameters)));
        if r.namespaced {
            let mut item = Item::new();
            write.operation(&mut item, "list", "get", "list", LIST, Some("List"), None);
            if let Some(operation) = item.get_mut("get") {
                // Not the operation of the same name in one namespace.
                operation["operationId"] = format!("list{}ForAllNamespaces", write.id("list")).into();
            }
            out.push((format!("{root}/{}", r.plural), write.with_parameters(item, &[])));
        }
    }
    let tail = r.subresource.as_ref().map(|s| format!("/{s}")).unwrap_or_default();
    let read = if r.subresource.as_deref() == Some("log") { LOG } else { READ };
    let mut item = Item::new();
    write.operation(&mut item, "get", "get", "get", read, None, None);
    write.operation(&mut item, "update", "put", "put", WRITE, None, Some(""));
    write.operation(&mut item, "patch", "patch", "patch", PATCH, None, Some("Patch"));
    write.operation(&mut item, "delete", "delete", "delete", DELETE, Some("Status"), Some("DeleteOptions"));
    if r.subresource.is_some() {
        write.operation(&mut item, "create", "post", "post", WRITE, None, Some(""));
    }
    let mut named = vec!["name"];
    named.extend(parameters);
    out.push((format!("{collection}/{{name}}{tail}"), write.with_parameters(item, &named)));
    out.retain(|(_, item)| item.keys().any(|k| k != "parameters"));
    out
}

struct Writer<'a> {
    r: &'a OpenapiResource,
    flavor: Flavor,
    used: &'a mut BTreeSet<String>,
}

impl Writer<'_> {
    // The type of an answer or a body: of the kind itself, of its list, or of a type of meta.
    fn type_ref(&mut self, what: &str) -> Value {
        let name = match what {
            "Status" | "DeleteOptions" | "Patch" => format!("{META}.{what}"),
            suffix if self.r.custom.is_some() => {
                self.used.extend(super::custom::TYPES.map(str::to_owned));
                return reference(&super::custom::name(self.r, suffix), self.flavor);
            }
            suffix => {
                let gvk = crate::Gvk { kind: format!("{}{suffix}", self.r.gvk.kind), ..self.r.gvk.clone() };
                match schema::for_gvk(&gvk) {
                    Some(ty) => ty.name.clone(),
                    None => return json!({"type": "string"}),
                }
            }
        };
        self.used.insert(name.clone());
        reference(&name, self.flavor)
    }

    #[allow(clippy::too_many_arguments)]
    fn operation(
        &mut self,
        item: &mut Item,
        verb: &str,
        method: &str,
        action: &str,
        query: &[&str],
        answer: Option<&str>,
        body: Option<&str>,
    ) {
        let r = self.r;
        if !r.verbs.iter().any(|v| v == verb) {
            return;
        }
        let answer = if r.subresource.as_deref() == Some("log") {
            json!({"type": "string"})
        } else {
            self.type_ref(answer.unwrap_or(""))
        };
        let body = body.map(|b| self.type_ref(b));
        let mut operation = Item::new();
        let mut put = |key: &str, value: Value| drop(operation.insert(key.into(), value));
        put("operationId", format!("{action}{}", self.id(verb)).into());
        put("x-kubernetes-action", action.into());
        put(
            "x-kubernetes-group-version-kind",
            json!({"group": r.gvk.group, "version": r.gvk.version, "kind": r.gvk.kind}),
        );
        let patches: &[&str] = if r.custom.is_some() { CUSTOM_PATCHES } else { PATCHES };
        let consumes: &[&str] = if verb == "patch" { patches } else { PRODUCES };
        let mut parameters: Vec<Value> = query.iter().map(|q| parameter(q, "query", self.flavor)).collect();
        match (self.flavor, body) {
            (Flavor::V2, body) => {
                if let Some(schema) = body {
                    let required = verb != "delete" && verb != "deletecollection";
                    let body = json!({"name": "body", "in": "body", "schema": schema, "required": required});
                    parameters.insert(0, body);
                }
                put("consumes", if verb == "patch" { json!(patches) } else { json!(["*/*"]) });
                let produces = if verb == "list" { [PRODUCES, STREAMS].concat() } else { PRODUCES.to_vec() };
                put("produces", json!(produces));
                put("schemes", json!(["https"]));
                put(
                    "responses",
                    json!({"200": {"description": "OK", "schema": answer}, "401": {"description": "Unauthorized"}}),
                );
            }
            (Flavor::V3, body) => {
                if let Some(schema) = body {
                    put("requestBody", json!({"content": content(consumes, &schema)}));
                }
                let answers = json!({"200": {"description": "OK", "content": content(PRODUCES, &answer)}, "401": {"description": "Unauthorized"}});
                put("responses", answers);
            }
        }
        put("parameters", parameters.into());
        item.insert(method.into(), Value::Object(operation));
    }

    // Unique among the operations of a document: `CoreV1NamespacedPodStatus`.
    fn id(&self, verb: &str) -> String {
        let r = self.r;
        let group = if r.group.is_empty() { "core" } else { r.group.split('.').next().unwrap_or_default() };
        let sub = r.subresource.as_deref().map(capital).unwrap_or_default();
        let scope = if r.namespaced { "Namespaced" } else { "" };
        let many = if verb == "deletecollection" { "Collection" } else { "" };
        format!("{}{}{many}{scope}{}{sub}", capital(group), capital(&r.version), capital(&r.plural))
    }

    fn with_parameters(&self, mut item: Item, path: &[&str]) -> Item {
        let mut parameters: Vec<Value> = path.iter().map(|p| parameter(p, "path", self.flavor)).collect();
        if item.is_empty() {
            return item;
        }
        parameters.sort_by_key(|p| p["name"].to_string());
        item.insert("parameters".into(), parameters.into());
        item
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    Value::Object(types.iter().map(|t| (t.to_string(), json!({"schema": schema}))).collect())
}

fn parameter(name: &str, place: &str, flavor: Flavor) -> Value {
    let kind = match name {
        "allowWatchBookmarks"
        | "follow"
        | "force"
        | "insecureSkipTLSVerifyBackend"
        | "orphanDependents"
        | "previous"
        | "sendInitialEvents"
        | "timestamps"
        | "watch" => "boolean",
        "gracePeriodSeconds" | "limit" | "limitBytes" | "sinceSeconds" | "tailLines" | "timeoutSeconds" => {
            "integer"
        }
        _ => "string",
    };
    let mut out = json!({"name": name, "in": place});
    match flavor {
        Flavor::V2 => out["type"] = kind.into(),
        Flavor::V3 => out["schema"] = json!({"type": kind, "uniqueItems": true}),
    }
    match (flavor, place) {
        (_, "path") => out["required"] = true.into(),
        (Flavor::V2, _) => out["uniqueItems"] = true.into(),
        _ => {}
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
