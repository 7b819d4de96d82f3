//! FlowSchema: which calls share a level, and what tells its flows apart.

use std::sync::Arc;

use async_trait::async_trait;
use coracle_api::Status;
use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as names;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::source::dangling;
use super::{GROUP, defaults};
use crate::value::{at, flag, items, number, present, reset, same, set_default, set_default_number, text};
use crate::{check, table};

const KINDS: [&str; 3] = ["Group", "ServiceAccount", "User"];
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];
/// The last place; only schemas of every cluster have the first.
const LAST: i64 = 10_000;

static COLUMNS: [Column; 6] = [
    table::NAME,
    table::string("PriorityLevel", "The level that the calls belong to."),
    table::string("MatchingPrecedence", "Schemas with lower numbers are asked first."),
    table::string("DistinguisherMethod", "What tells flows apart."),
    table::AGE,
    table::string("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(GROUP, "v1", "FlowSchema", "flowschemas", Arc::new(FlowSchema))
        .cluster_scoped()
        .subresource(Subresource::status("FlowSchema"))
}

struct FlowSchema;

#[async_trait]
impl Strategy for FlowSchema {
    async fn prepare_for_create(&self, cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        let level = text(obj, "/spec/priorityLevelConfiguration/name").to_owned();
        let found = cx.objects.get(GROUP, "prioritylevelconfigurations", None, &level).await?.is_some();
        reset(obj, "status", json!({"conditions": [dangling(&level, found)]}));
        Ok(())
    }

    fn default(&self, obj: &mut Value) {
        let Some(spec) = obj.get_mut("spec").filter(|s| s.is_object()) else { return };
        if number(spec, "/matchingPrecedence") == 0 {
            crate::value::remove(spec, "matchingPrecedence");
            set_default_number(spec, "matchingPrecedence", 1000);
        }
        for rule in crate::value::items_mut(spec, "rules") {
            for subject in crate::value::items_mut(rule, "subjects") {
                if let Some(account) = subject.get_mut("serviceAccount")
                    && account.get("name").is_some_and(|n| n == "")
                {
                    crate::value::remove(account, "name");
                    set_default(account, "name", "*");
                }
            }
        }
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let (spec, path, mut errors) = (at(obj, "/spec"), Path::new("spec"), Vec::new());
        let name = text(obj, "/metadata/name");
        precedence(&mut errors, spec, &path, name);
        let method = text(spec, "/distinguisherMethod/type");
        if present(spec, "/distinguisherMethod") && !matches!(method, "ByUser" | "ByNamespace") {
            let path = path.child("distinguisherMethod").child("type");
            errors.push(Error::not_supported(&path, method, &["ByNamespace", "ByUser"]));
        }
        let level = text(spec, "/priorityLevelConfiguration/name");
        let level_path = path.child("priorityLevelConfiguration").child("name");
        if level.is_empty() {
            errors.push(Error::required(&level_path, "must reference a priority level"));
        } else {
            check::words(&mut errors, &level_path, level, names::dns1123_subdomain(level));
        }
        for (i, entry) in items(spec, "/rules").iter().enumerate() {
            rule(&mut errors, entry, &path.child("rules").index(i));
        }
        if matches!(name, "exempt" | "catch-all")
            && errors.is_empty()
            && !defaults::schema(name).is_some_and(|fixed| same(&fixed, spec))
        {
            let words = format!("spec of '{name}' must equal the fixed value");
            errors.push(Error::invalid(&path, spec.clone(), words));
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let method = text(obj, "/spec/distinguisherMethod/type");
        let dangling = items(obj, "/status/conditions").iter().find(|c| text(c, "/type") == "Dangling");
        vec![
            table::name(obj),
            text(obj, "/spec/priorityLevelConfiguration/name").into(),
            number(obj, "/spec/matchingPrecedence").into(),
            if method.is_empty() { "<none>" } else { method }.into(),
            table::age(obj, now),
            dangling.map_or("?", |c| text(c, "/status")).into(),
        ]
    }
}

fn precedence(errors: &mut Vec<Error>, spec: &Value, path: &Path, name: &str) {
    let (path, n) = (path.child("matchingPrecedence"), number(spec, "/matchingPrecedence"));
    if n <= 0 {
        errors.push(Error::invalid(&path, n, "must be a positive value"));
    }
    if n > LAST {
        errors.push(Error::invalid(&path, n, format!("must not be greater than {LAST}")));
    }
    if n == 1 && name != "exempt" {
        errors.push(Error::invalid(&path, n, "only the schema named 'exempt' may have matchingPrecedence 1"));
    }
}

fn rule(errors: &mut Vec<Error>, rule: &Value, path: &Path) {
    let subjects = items(rule, "/subjects");
    if subjects.is_empty() {
        errors.push(Error::required(&path.child("subjects"), "subjects must contain at least one value"));
    }
    for (i, entry) in subjects.iter().enumerate() {
        subject(errors, entry, &path.child("subjects").index(i));
    }
    let (resources, paths) = (items(rule, "/resourceRules"), items(rule, "/nonResourceRules"));
    if resources.is_empty() && paths.is_empty() {
        let words = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(Error::required(path, words));
    }
    for (i, entry) in resources.iter().enumerate() {
        resource_rule(errors, entry, &path.child("resourceRules").index(i));
    }
    for (i, entry) in paths.iter().enumerate() {
        let path = path.child("nonResourceRules").index(i);
        verbs(errors, entry, &path);
        some(
            errors,
            entry,
            &path,
            "nonResourceURLs",
            "nonResourceURLs must contain at least one value",
            "urls",
        );
        for (j, url) in items(entry, "/nonResourceURLs").iter().enumerate() {
            non_resource_url(errors, url.as_str().unwrap_or(""), &path.child("nonResourceURLs").index(j));
        }
    }
}

fn subject(errors: &mut Vec<Error>, subject: &Value, path: &Path) {
    let kind = text(subject, "/kind");
    if !KINDS.contains(&kind) {
        errors.push(Error::not_supported(&path.child("kind"), kind, &KINDS));
        return;
    }
    for (field, of) in [("serviceAccount", "ServiceAccount"), ("user", "User"), ("group", "Group")] {
        let (path, there) = (path.child(field), subject.get(field).is_some_and(|f| !f.is_null()));
        if of != kind {
            if there {
                let words = format!("{field} is forbidden when subject kind is not '{of}'");
                errors.push(Error::forbidden(&path, words));
            }
        } else if !there {
            errors.push(Error::required(&path, format!("{field} is required when subject kind is '{of}'")));
        } else {
            let name = text(subject, &format!("/{field}/name"));
            if name.is_empty() {
                errors.push(Error::required(&path.child("name"), ""));
            }
            if kind == "ServiceAccount" && text(subject, "/serviceAccount/namespace").is_empty() {
                let words = "must specify namespace for service account";
                errors.push(Error::required(&path.child("namespace"), words));
            }
        }
    }
}

fn verbs(errors: &mut Vec<Error>, rule: &Value, path: &Path) {
    some(errors, rule, path, "verbs", "verbs must contain at least one value", "verbs");
    let list = items(rule, "/verbs");
    if !list.iter().any(|v| v == "*") {
        for verb in list.iter().filter_map(Value::as_str).filter(|v| !VERBS.contains(v)) {
            errors.push(Error::not_supported(&path.child("verbs"), verb, &VERBS));
        }
    }
}

fn resource_rule(errors: &mut Vec<Error>, rule: &Value, path: &Path) {
    verbs(errors, rule, path);
    some(errors, rule, path, "apiGroups", "resource rules must supply at least one api group", "api groups");
    some(errors, rule, path, "resources", "resource rules must supply at least one resource", "resources");
    let namespaces = items(rule, "/namespaces");
    if namespaces.is_empty() && !flag(rule, "/clusterScope") {
        let words = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.push(Error::required(&path.child("namespaces"), words));
    }
    alone(errors, namespaces, &path.child("namespaces"), "namespaces");
    for (i, namespace) in namespaces.iter().filter_map(Value::as_str).enumerate().filter(|n| n.1 != "*") {
        let path = path.child("namespaces").index(i);
        check::words(errors, &path, namespace, names::dns1123_label(namespace));
    }
}

fn some(
    errors: &mut Vec<Error>,
    rule: &Value,
    path: &Path,
    field: &'static str,
    missing: &'static str,
    others: &str,
) {
    let (list, path) = (items(rule, &format!("/{field}")), path.child(field));
    if list.is_empty() {
        errors.push(Error::required(&path, missing));
    }
    alone(errors, list, &path, others);
}

/// A star says everything.
fn alone(errors: &mut Vec<Error>, list: &[Value], path: &Path, others: &str) {
    if list.len() > 1 && list.iter().any(|v| v == "*") {
        let words = format!("if '*' is present, must not specify other {others}");
        errors.push(Error::invalid(path, Value::from(list.to_vec()), words));
    }
}

fn non_resource_url(errors: &mut Vec<Error>, url: &str, path: &Path) {
    let words = match url {
        "*" | "/" => return,
        "" => "must not be empty",
        _ if !url.starts_with('/') => "must start with slash",
        _ if url.contains(' ') => "must not contain white-space",
        _ if url.contains("//") => "must not contain double slash",
        _ if url.contains('*') && (url.matches('*').count() > 1 || !url.ends_with("/*")) => {
            "wildcard can only do suffix matching"
        }
        _ => return,
    };
    errors.push(Error::invalid(path, url, words));
}
