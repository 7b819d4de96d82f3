//! The bindings: where a policy holds, with which parameters, and what follows when it is broken.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::Family;
use crate::admission_rules::{default_match, match_resources};
use crate::value::{at, items, object, present, text};
use crate::{check, table};

const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("PolicyName", "The policy definition which the policy binding binds to"),
    table::string("ParamRef", "The param definition sets the configuration in admission control"),
    table::AGE,
];

/// The resource.
pub fn resource(family: Family) -> ResourceDef {
    let kind = format!("{}Binding", family.kind());
    ResourceDef::new(super::GROUP, "v1", &kind, family.bindings(), Arc::new(Binding { family }))
        .cluster_scoped()
        .categories(&["api-extensions"])
}

struct Binding {
    family: Family,
}

impl Strategy for Binding {
    fn default(&self, obj: &mut Value) {
        let matched = object(obj, "spec").and_then(|s| s.get_mut("matchResources"));
        if let Some(matched) = matched.filter(|m| m.is_object()) {
            default_match(matched);
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        let policy = text(spec, "/policyName");
        if policy.is_empty() {
            errors.push(Error::required(&path.child("policyName"), ""));
        } else {
            check::words(&mut errors, &path.child("policyName"), policy, rules::dns1123_subdomain(policy));
        }
        if present(spec, "/paramRef") {
            parameters(&mut errors, at(spec, "/paramRef"), &path.child("paramRef"));
        }
        if self.family == Family::Validating {
            actions(&mut errors, items(spec, "/validationActions"), &path.child("validationActions"));
        }
        match_resources(&mut errors, at(spec, "/matchResources"), &path.child("matchResources"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let reference = at(obj, "/spec/paramRef");
        let shown = match (text(reference, "/namespace"), text(reference, "/name")) {
            (_, "") if present(reference, "/selector") => table::selector(at(reference, "/selector")),
            (_, "") => "<unset>".to_owned(),
            ("", name) => name.to_owned(),
            (namespace, name) => format!("{namespace}/{name}"),
        };
        vec![table::name(obj), text(obj, "/spec/policyName").into(), shown.into(), table::age(obj, now)]
    }
}

fn actions(errors: &mut Vec<Error>, actions: &[Value], path: &Path) {
    if actions.is_empty() {
        errors.push(Error::required(path, ""));
    }
    for (i, action) in actions.iter().enumerate() {
        let action = action.as_str().unwrap_or_default();
        check::one_of(errors, &path.index(i), action, &ACTIONS, true);
    }
    let has = |name: &str| actions.iter().any(|a| a == name);
    if has("Deny") && has("Warn") {
        let words = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(Error::invalid(path, actions.to_vec(), words));
    }
}

fn parameters(errors: &mut Vec<Error>, reference: &Value, path: &Path) {
    let (name, selector) = (text(reference, "/name"), present(reference, "/selector"));
    match (name, selector) {
        ("", false) => errors.push(Error::required(path, "one of name or selector must be specified")),
        (name, chosen) => {
            if !name.is_empty() {
                check::words(errors, &path.child("name"), name, rules::dns1123_subdomain(name));
                if chosen {
                    let words = "name and selector are mutually exclusive";
                    errors.push(Error::forbidden(&path.child("name"), words));
                }
            }
            check::label_selector(errors, &path.child("selector"), at(reference, "/selector"));
        }
    }
    let action = text(reference, "/parameterNotFoundAction");
    let path = path.child("parameterNotFoundAction");
    check::one_of(errors, &path, action, &["Allow", "Deny"], true);
}
