//! The two kinds: lists of webhooks, of which those that change objects say besides whether they would be called again.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation::{dns1035_label, dns1123_subdomain};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use super::{GROUP, client_config};
use crate::admission_cel::Speaks;
use crate::value::{at, items, items_mut, number, object, present, set_default, set_default_number, text};
use crate::{admission_rules, check, table};

/// Versions of AdmissionReview that are spoken.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::integer("Webhooks", "Webhooks indicates the number of webhooks configured."),
    table::AGE,
];

/// One of the two resources.
pub fn resource(kind: &'static str, plural: &str, mutating: bool) -> ResourceDef {
    ResourceDef::new(GROUP, "v1", kind, plural, Arc::new(Configuration { mutating }))
        .cluster_scoped()
        .categories(&["api-extensions"])
}

struct Configuration {
    mutating: bool,
}

impl Strategy for Configuration {
    fn default(&self, obj: &mut Value) {
        for hook in items_mut(obj, "webhooks") {
            set_default(hook, "failurePolicy", "Fail");
            set_default(hook, "matchPolicy", "Equivalent");
            object(hook, "namespaceSelector");
            object(hook, "objectSelector");
            set_default_number(hook, "timeoutSeconds", 10);
            if self.mutating {
                set_default(hook, "reinvocationPolicy", "Never");
            }
            items_mut(hook, "rules").for_each(|rule| set_default(rule, "scope", "*"));
            if let Some(config) = hook.get_mut("clientConfig").filter(|c| c.is_object()) {
                client_config::default(config);
            }
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
        let mut seen = BTreeSet::new();
        for (i, hook) in items(obj, "/webhooks").iter().enumerate() {
            let path = Path::new("webhooks").index(i);
            self.hook(&mut errors, hook, &path);
            review_versions(&mut errors, hook, &path.child("admissionReviewVersions"));
            let name = text(hook, "/name");
            if !name.is_empty() && !seen.insert(name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), items(obj, "/webhooks").len().into(), table::age(obj, now)]
    }
}

impl Configuration {
    fn hook(&self, errors: &mut Vec<Error>, hook: &Value, path: &Path) {
        qualified(errors, text(hook, "/name"), &path.child("name"));
        for (i, rule) in items(hook, "/rules").iter().enumerate() {
            admission_rules::rule(errors, rule, &path.child("rules").index(i));
        }
        let policy = text(hook, "/failurePolicy");
        check::one_of(errors, &path.child("failurePolicy"), policy, &["Fail", "Ignore"], false);
        admission_rules::selectors(errors, hook, path);
        let effects = text(hook, "/sideEffects");
        if present(hook, "/sideEffects") {
            check::one_of(errors, &path.child("sideEffects"), effects, &SIDE_EFFECTS, true);
        } else {
            let words = format!("must specify one of {}", SIDE_EFFECTS.join(", "));
            errors.push(Error::required(&path.child("sideEffects"), words));
        }
        let timeout = number(hook, "/timeoutSeconds");
        if !(1..=30).contains(&timeout) {
            let words = "the timeout value must be between 1 and 30 seconds";
            errors.push(Error::invalid(&path.child("timeoutSeconds"), timeout, words));
        }
        if self.mutating {
            let policy = text(hook, "/reinvocationPolicy");
            let known = ["IfNeeded", "Never"];
            check::one_of(errors, &path.child("reinvocationPolicy"), policy, &known, false);
        }
        client_config::check(errors, at(hook, "/clientConfig"), &path.child("clientConfig"));
        let conditions = items(hook, "/matchConditions");
        admission_rules::conditions(errors, conditions, &path.child("matchConditions"), Speaks::WEBHOOK);
    }
}

fn qualified(errors: &mut Vec<Error>, name: &str, path: &Path) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let wrong = dns1123_subdomain(name);
    if !wrong.is_empty() {
        errors.push(Error::invalid(path, name, wrong.join(",")));
    } else if name.split('.').count() < 3 {
        let words = "should be a domain with at least three segments separated by dots";
        errors.push(Error::invalid(path, name, words));
    }
}

fn review_versions(errors: &mut Vec<Error>, hook: &Value, path: &Path) {
    let given = items(hook, "/admissionReviewVersions");
    if given.is_empty() {
        let words = format!("must specify one of {}", REVIEWS.join(", "));
        errors.push(Error::required(path, words));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, version) in given.iter().filter_map(Value::as_str).enumerate() {
        if !seen.insert(version) {
            errors.push(Error::invalid(&path.index(i), version, "duplicate version"));
            continue;
        }
        check::words(errors, &path.index(i), version, dns1035_label(version));
    }
    if !REVIEWS.iter().any(|known| seen.contains(known)) {
        let words = format!("must include at least one of {}", REVIEWS.join(", "));
        errors.push(Error::invalid(path, given.to_vec(), words));
    }
}
