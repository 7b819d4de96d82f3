//! ResourceQuota: what a namespace may have at most. The admission plugin of this name counts.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::quantity::Quantity;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, entries, items, object, reset, same, text};
use crate::{check, table};

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("Request", "What is used and may be requested at most, of counts and requests."),
    table::string("Limit", "What is used and may be asked for at most, of limits."),
    table::AGE,
];

/// Names that a quota may bound without a domain.
const STANDARD: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
];
/// Names that count, so that only whole numbers will do.
const WHOLE: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// What a quota may be narrowed to.
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("", "v1", "ResourceQuota", "resourcequotas", Arc::new(ResourceQuota))
        .short_names(&["quota"])
        .subresource(Subresource::status("ResourceQuota"))
}

struct ResourceQuota;

#[async_trait::async_trait]
impl Strategy for ResourceQuota {
    fn default(&self, obj: &mut Value) {
        object(obj, "spec");
        object(obj, "status");
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        amounts(&mut errors, at(spec, "/hard"), &path.child("hard"));
        scopes(&mut errors, spec, &path);
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let path = Path::new("spec").child("scopes");
        let set = |obj: &Value| {
            let mut names: Vec<Value> = items(obj, "/spec/scopes").to_vec();
            names.sort_by_key(Value::to_string);
            Value::from(names)
        };
        if !same(&set(new), &set(old)) {
            errors.push(Error::invalid(&path, at(new, "/spec/scopes").clone(), check::IMMUTABLE));
        }
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        for field in ["hard", "used"] {
            let path = Path::new("status").child(field);
            amounts(&mut errors, at(new, &format!("/status/{field}")), &path);
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, hard) in entries(obj, "/status/hard") {
            let used = at(obj, "/status/used").get(name).and_then(Value::as_str).unwrap_or("0");
            let shown = format!("{name}: {used}/{}", hard.as_str().unwrap_or_default());
            if name.starts_with("limits") { limits.push(shown) } else { requests.push(shown) }
        }
        vec![table::name(obj), requests.join(", ").into(), limits.join(", ").into(), table::age(obj, now)]
    }
}

fn amounts(errors: &mut Vec<Error>, amounts: &Value, path: &Path) {
    for (name, amount) in entries(amounts, "") {
        let path = path.key(name.as_str());
        resource_name(errors, name, &path);
        let Some(q) = amount.as_str().and_then(|q| Quantity::parse(q).ok()) else { continue };
        if q.sign() < 0 {
            errors.push(Error::invalid(&path, amount.clone(), check::NEGATIVE));
        }
        if WHOLE.contains(&name.as_str()) && !q.is_whole() {
            errors.push(Error::invalid(&path, amount.clone(), "must be an integer"));
        }
    }
}

fn resource_name(errors: &mut Vec<Error>, name: &str, path: &Path) {
    let wrong = rules::qualified_name(name);
    if !wrong.is_empty() {
        check::words(errors, path, name, wrong);
    } else if !name.contains('/') && !STANDARD.contains(&name) && !name.starts_with("hugepages-") {
        errors.push(Error::invalid(path, name, "must be a standard resource type or fully qualified"));
        errors.push(Error::invalid(path, name, "must be a standard resource for quota"));
    }
}

fn scopes(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let scopes = items(spec, "/scopes");
    let at_scopes = path.child("scopes");
    for _ in scopes.iter().filter(|s| !SCOPES.iter().any(|known| s == known)) {
        errors.push(Error::invalid(&at_scopes, scopes.to_vec(), "unsupported scope"));
    }
    for (a, b) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if [a, b].iter().all(|name| scopes.iter().any(|s| s == name)) {
            errors.push(Error::invalid(&at_scopes, scopes.to_vec(), "conflicting scopes"));
        }
    }
    for (i, expression) in items(spec, "/scopeSelector/matchExpressions").iter().enumerate() {
        let path = path.child("scopeSelector").child("matchExpressions").index(i);
        let scope = text(expression, "/scopeName");
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&path.child("scopeName"), scope, "unsupported scope"));
        }
        let values = items(expression, "/values");
        let path_values = path.child("values");
        match text(expression, "/operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(Error::required(
                &path_values,
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            )),
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(Error::invalid(
                &path_values,
                values.to_vec(),
                "must be no value when `operator` is 'Exists' or 'DoesNotExist' for scope selector",
            )),
            "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(Error::invalid(&path.child("operator"), other, "not a valid selector operator"))
            }
        }
    }
}
