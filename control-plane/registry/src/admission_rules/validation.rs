//! What must hold of rules, selectors and conditions.

use std::collections::BTreeSet;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as names;
use serde_json::Value;

use crate::admission_cel::{self, Speaks};
use crate::check;
use crate::value::{at, items, present, text};

const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: [&str; 3] = ["*", "Cluster", "Namespaced"];
/// Most match conditions.
const CONDITIONS_MAX: usize = 64;

/// Everything wrong with one rule.
pub fn rule(errors: &mut Vec<Error>, rule: &Value, path: &Path) {
    let list = |field: &str| items(rule, &format!("/{field}"));
    for (field, what) in [
        ("operations", "other operations"),
        ("apiGroups", "other API groups"),
        ("apiVersions", "other API versions"),
    ] {
        let (all, path) = (list(field), path.child(field.to_owned()));
        if all.is_empty() {
            errors.push(Error::required(&path, ""));
        }
        if all.len() > 1 && all.iter().any(|v| v == "*") {
            let words = format!("if '*' is present, must not specify {what}");
            errors.push(Error::invalid(&path, all.to_vec(), words));
        }
    }
    for (i, operation) in list("operations").iter().enumerate() {
        let path = path.child("operations").index(i);
        check::one_of(errors, &path, operation.as_str().unwrap_or_default(), &OPERATIONS, true);
    }
    for (i, _) in list("apiVersions").iter().enumerate().filter(|(_, v)| *v == "") {
        errors.push(Error::required(&path.child("apiVersions").index(i), ""));
    }
    resources(errors, list("resources"), &path.child("resources"));
    let scope = text(rule, "/scope");
    check::one_of(errors, &path.child("scope"), scope, &SCOPES, false);
    let mut seen = BTreeSet::new();
    for (i, name) in list("resourceNames").iter().filter_map(Value::as_str).enumerate() {
        let path = path.child("resourceNames").index(i);
        check::words(errors, &path, name, names::path_segment(name));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&path, name));
        }
    }
}

fn resources(errors: &mut Vec<Error>, all: &[Value], path: &Path) {
    if all.is_empty() {
        errors.push(Error::required(path, ""));
    }
    let (mut whole, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (i, given) in all.iter().map(|v| v.as_str().unwrap_or_default()).enumerate() {
        let path = path.index(i);
        if given.is_empty() {
            errors.push(Error::required(&path, ""));
            continue;
        }
        let Some((resource, sub)) = given.split_once('/') else {
            plain = given != "*";
            continue;
        };
        if whole.contains(resource) {
            let words = format!("if '{resource}/*' is present, must not specify {given}");
            errors.push(Error::invalid(&path, given, words));
        }
        if everywhere.contains(sub) {
            let words = format!("if '*/{sub}' is present, must not specify {given}");
            errors.push(Error::invalid(&path, given, words));
        }
        if sub == "*" {
            whole.insert(resource);
        }
        if resource == "*" {
            everywhere.insert(sub);
        }
    }
    let has = |name: &str| all.iter().any(|v| v == name);
    if all.len() > 1 && has("*/*") {
        let words = "if '*/*' is present, must not specify other resources";
        errors.push(Error::invalid(path, all.to_vec(), words));
    }
    if has("*") && plain {
        let words = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(path, all.to_vec(), words));
    }
}

/// Errors of the selectors of namespaces and objects, and of the match policy.
pub fn selectors(errors: &mut Vec<Error>, holder: &Value, path: &Path) {
    let policy = text(holder, "/matchPolicy");
    check::one_of(errors, &path.child("matchPolicy"), policy, &["Equivalent", "Exact"], false);
    for selector in ["namespaceSelector", "objectSelector"] {
        check::label_selector(errors, &path.child(selector), at(holder, &format!("/{selector}")));
    }
}

/// Errors of what a policy or a binding matches.
pub fn match_resources(errors: &mut Vec<Error>, matched: &Value, path: &Path) {
    selectors(errors, matched, path);
    for list in ["resourceRules", "excludeResourceRules"] {
        for (i, one) in items(matched, &format!("/{list}")).iter().enumerate() {
            rule(errors, one, &path.child(list).index(i));
        }
    }
}

/// Errors of match conditions, whose expressions may speak of some variables.
pub fn conditions(errors: &mut Vec<Error>, all: &[Value], path: &Path, speaks: Speaks) {
    if all.len() > CONDITIONS_MAX {
        errors.push(Error::too_many(path, all.len(), CONDITIONS_MAX));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, condition) in all.iter().enumerate() {
        let path = path.index(i);
        admission_cel::check(errors, condition, "expression", &path, speaks);
        let (name, at_name) = (text(condition, "/name"), path.child("name"));
        if !present(condition, "/name") || name.is_empty() {
            errors.push(Error::required(&at_name, ""));
            continue;
        }
        check::words(errors, &at_name, name, names::qualified_name(name));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at_name, name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(value: Value) -> Vec<String> {
        let mut errors = Vec::new();
        rule(&mut errors, &value, &Path::new("r"));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules() {
        let good = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods", "pods/log"], "scope": "*"});
        assert!(said(good.clone()).is_empty());
        let with = |field: &str, value: Value| {
            let mut bad = good.clone();
            bad[field] = value;
            said(bad)
        };
        assert_eq!(with("operations", json!([])), ["r.operations: Required value"]);
        assert_eq!(
            with("operations", json!(["*", "CREATE"])),
            [
                "r.operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations"
            ]
        );
        assert_eq!(
            with("operations", json!(["BIND"])),
            [
                "r.operations[0]: Unsupported value: \"BIND\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\""
            ]
        );
        assert_eq!(
            with("resources", json!(["pods/*", "pods/status"])),
            [
                "r.resources[1]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status"
            ]
        );
        assert_eq!(with("resources", json!(["*/*", "pods"])).len(), 1);
        assert_eq!(with("resources", json!(["*", "pods"])).len(), 1);
        assert_eq!(with("scope", json!("Here")).len(), 1);
    }
}
