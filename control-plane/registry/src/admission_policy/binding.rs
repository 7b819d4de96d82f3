//! ValidatingAdmissionPolicyBinding: where a policy holds, and what follows when it is broken.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::policy::{default_match, matches};
use crate::value::{at, items, object, present, text};
use crate::{check, table};

const ACTIONS: [&str; 3] = ["Audit", "Deny", "Warn"];

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("PolicyName", "The policy that is bound."),
    table::string("ParamRef", "The parameters that are used."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(Binding);
    ResourceDef::new(super::GROUP, "v1", "ValidatingAdmissionPolicyBinding", super::BINDINGS, strategy)
        .cluster_scoped()
        .categories(&["api-extensions"])
}

struct Binding;

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
            let words = "is not enforced by this server, so it is not accepted";
            errors.push(Error::forbidden(&path.child("paramRef"), words));
        }
        let at_actions = path.child("validationActions");
        let actions = items(spec, "/validationActions");
        if actions.is_empty() {
            errors.push(Error::required(&at_actions, ""));
        }
        for (i, action) in actions.iter().enumerate() {
            let action = action.as_str().unwrap_or_default();
            check::one_of(&mut errors, &at_actions.index(i), action, &ACTIONS, true);
        }
        let both = |name: &str| actions.iter().any(|a| a == name);
        if both("Deny") && both("Warn") {
            let words = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
            errors.push(Error::invalid(&at_actions, actions.to_vec(), words));
        }
        matches(&mut errors, at(spec, "/matchResources"), &path.child("matchResources"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let policy = text(obj, "/spec/policyName");
        vec![table::name(obj), policy.into(), "<unset>".into(), table::age(obj, now)]
    }
}
