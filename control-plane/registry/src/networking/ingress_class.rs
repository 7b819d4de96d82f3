//! IngressClass.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::value::{at, object, present, set_default, text};
use crate::{check, table};

/// Longest name of a controller, in bytes.
const CONTROLLER_MAX: usize = 250;

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string("Controller", "The controller that handles this class."),
    table::string("Parameters", "An object with more configuration for the controller."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "IngressClass", "ingressclasses", Arc::new(IngressClass))
        .cluster_scoped()
}

struct IngressClass;

impl Strategy for IngressClass {
    fn default(&self, obj: &mut Value) {
        let Some(spec) = object(obj, "spec") else { return };
        if let Some(parameters) = spec.get_mut("parameters").filter(|p| p.is_object()) {
            set_default(parameters, "scope", "Cluster");
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
        let path = Path::new("spec");
        let controller = text(obj, "/spec/controller");
        let at_controller = path.child("controller");
        if controller.len() > CONTROLLER_MAX {
            errors.push(Error::too_long(&at_controller, CONTROLLER_MAX));
        }
        let (domain, rest) = controller.split_once('/').unwrap_or((controller, ""));
        if controller.is_empty() {
            errors.push(Error::required(&at_controller, ""));
        } else if rest.is_empty() {
            let words = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(Error::invalid(&at_controller, controller, words));
        } else {
            let wrong = coracle_api::meta::validation::dns1123_subdomain(domain);
            check::words(&mut errors, &at_controller, domain, wrong);
        }
        parameters(&mut errors, at(obj, "/spec/parameters"), &path.child("parameters"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let pointer = "/spec/controller";
        let path = Path::new("spec").child("controller");
        check::immutable(&mut errors, &path, at(new, pointer), at(old, pointer));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let reference = at(obj, "/spec/parameters");
        let parameters = if reference.is_null() {
            "<none>".to_string()
        } else {
            let kind = text(reference, "/kind");
            let group = text(reference, "/apiGroup");
            let dot = if group.is_empty() { "" } else { "." };
            format!("{kind}{dot}{group}/{}", text(reference, "/name"))
        };
        vec![table::name(obj), text(obj, "/spec/controller").into(), parameters.into(), table::age(obj, now)]
    }
}

fn parameters(errors: &mut Vec<Error>, reference: &Value, path: &Path) {
    if reference.is_null() {
        return;
    }
    for field in ["kind", "name"] {
        if text(reference, &format!("/{field}")).is_empty() {
            errors.push(Error::required(&path.child(field), ""));
        }
    }
    let scope = text(reference, "/scope");
    check::one_of(errors, &path.child("scope"), scope, &["Cluster", "Namespace"], true);
    let named = present(reference, "/namespace");
    if scope == "Namespace" && !named {
        let words = "`parameters.scope` is set to 'Namespace'";
        errors.push(Error::required(&path.child("namespace"), words));
    }
    if scope == "Cluster" && named {
        let words = "`parameters.scope` is set to 'Cluster'";
        errors.push(Error::forbidden(&path.child("namespace"), words));
    }
}
