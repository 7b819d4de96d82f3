//! ValidatingAdmissionPolicy.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::expressions;
use crate::value::{at, items, items_mut, object, present, reset, set_default, text};
use crate::{check, table};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::integer("Validations", "The number of validation rules."),
    table::string("ParamKind", "The kind of the parameters."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(Policy);
    ResourceDef::new(super::GROUP, "v1", "ValidatingAdmissionPolicy", super::POLICIES, strategy)
        .cluster_scoped()
        .categories(&["api-extensions"])
        .subresource(Subresource::status("ValidatingAdmissionPolicy"))
}

struct Policy;

/// Fills in what a policy or a binding matches.
pub fn default_match(matched: &mut Value) {
    set_default(matched, "matchPolicy", "Equivalent");
    object(matched, "namespaceSelector");
    object(matched, "objectSelector");
    for list in ["resourceRules", "excludeResourceRules"] {
        items_mut(matched, list).for_each(|rule| set_default(rule, "scope", "*"));
    }
}

#[async_trait::async_trait]
impl Strategy for Policy {
    fn default(&self, obj: &mut Value) {
        object(obj, "status");
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "failurePolicy", "Fail");
        if let Some(matched) = spec.get_mut("matchConstraints").filter(|m| m.is_object()) {
            default_match(matched);
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        let unserved = "is not enforced by this server, so it is not accepted";
        for field in ["paramKind", "auditAnnotations"] {
            if present(spec, &format!("/{field}")) {
                errors.push(Error::forbidden(&path.child(field), unserved));
            }
        }
        if items(spec, "/validations").is_empty() {
            let words = "validations or auditAnnotations must contain at least one item";
            errors.push(Error::required(&path.child("validations"), words));
        }
        let policies = ["Fail", "Ignore"];
        let policy = text(spec, "/failurePolicy");
        check::one_of(&mut errors, &path.child("failurePolicy"), policy, &policies, false);
        let at_match = path.child("matchConstraints");
        match at(spec, "/matchConstraints") {
            Value::Null => errors.push(Error::required(&at_match, "")),
            matched => {
                if items(matched, "/resourceRules").is_empty() {
                    errors.push(Error::required(&at_match.child("resourceRules"), ""));
                }
                matches(&mut errors, matched, &at_match);
            }
        }
        errors.extend(expressions::check(spec, &path));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            table::name(obj),
            items(obj, "/spec/validations").len().into(),
            "<unset>".into(),
            table::age(obj, now),
        ]
    }
}

/// Errors of what a policy or a binding matches.
pub fn matches(errors: &mut Vec<Error>, matched: &Value, path: &Path) {
    for selector in ["namespaceSelector", "objectSelector"] {
        check::label_selector(errors, &path.child(selector), at(matched, &format!("/{selector}")));
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, rule) in items(matched, &format!("/{list}")).iter().enumerate() {
            let path = path.child(list).index(i);
            for field in ["operations", "apiGroups", "apiVersions", "resources"] {
                if items(rule, &format!("/{field}")).is_empty() {
                    errors.push(Error::required(&path.child(field), ""));
                }
            }
            for (i, operation) in items(rule, "/operations").iter().enumerate() {
                let path = path.child("operations").index(i);
                check::one_of(errors, &path, operation.as_str().unwrap_or_default(), &OPERATIONS, true);
            }
            let scope = text(rule, "/scope");
            check::one_of(errors, &path.child("scope"), scope, &["*", "Cluster", "Namespaced"], false);
        }
    }
}
