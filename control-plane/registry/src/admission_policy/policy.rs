//! The policies: what they are about, and the expressions that judge or change.

use std::collections::BTreeSet;
use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation::{dns1035_label, qualified_name};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Family;
use crate::admission_cel::{self, Speaks};
use crate::admission_rules::{conditions, default_match, match_resources};
use crate::value::{at, items, object, present, reset, set_default, text};
use crate::{check, table};

const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const PATCHES: [&str; 2] = ["ApplyConfiguration", "JSONPatch"];
/// Most audit annotations of a policy.
const ANNOTATIONS_MAX: usize = 20;
/// Most expressions of one kind in a policy.
const EXPRESSIONS_MAX: usize = 256;

static VALIDATING: [Column; 4] = [
    table::NAME,
    table::integer(
        "Validations",
        "Validations indicates the number of validation rules defined in this configuration",
    ),
    table::string("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    table::AGE,
];
static MUTATING: [Column; 4] = [
    table::NAME,
    table::integer(
        "Mutations",
        "Mutation indicates the number of mutations rules defined in this configuration",
    ),
    table::string("ParamKind", "ParamKind specifies the kind of resources used to parameterize this policy"),
    table::AGE,
];

/// The resource.
pub fn resource(family: Family) -> ResourceDef {
    let strategy = Arc::new(Policy { family });
    let def = ResourceDef::new(super::GROUP, "v1", family.kind(), family.policies(), strategy)
        .cluster_scoped()
        .categories(&["api-extensions"]);
    match family {
        Family::Validating => def.subresource(Subresource::status(family.kind())),
        Family::Mutating => def,
    }
}

struct Policy {
    family: Family,
}

#[async_trait::async_trait]
impl Strategy for Policy {
    fn default(&self, obj: &mut Value) {
        if self.family == Family::Validating {
            object(obj, "status");
        }
        let Some(spec) = object(obj, "spec") else { return };
        set_default(spec, "failurePolicy", "Fail");
        if let Some(matched) = spec.get_mut("matchConstraints").filter(|m| m.is_object()) {
            default_match(matched);
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        if self.family == Family::Validating {
            reset(obj, "status", json!({}));
        }
        Ok(())
    }

    fn has_status(&self) -> bool {
        self.family == Family::Validating
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        if present(spec, "/paramKind") {
            param_kind(&mut errors, at(spec, "/paramKind"), &path.child("paramKind"));
        }
        let policy = text(spec, "/failurePolicy");
        check::one_of(&mut errors, &path.child("failurePolicy"), policy, &["Fail", "Ignore"], false);
        let at_match = path.child("matchConstraints");
        match at(spec, "/matchConstraints") {
            Value::Null => errors.push(Error::required(&at_match, "")),
            matched => {
                if items(matched, "/resourceRules").is_empty() {
                    errors.push(Error::required(&at_match.child("resourceRules"), ""));
                }
                match_resources(&mut errors, matched, &at_match);
            }
        }
        let speaks = if present(spec, "/paramKind") { Speaks::PARAMS } else { Speaks::POLICY };
        let all = items(spec, "/matchConditions");
        conditions(&mut errors, all, &path.child("matchConditions"), speaks);
        variables(&mut errors, items(spec, "/variables"), &path.child("variables"), speaks);
        match self.family {
            Family::Validating => validating(&mut errors, obj, spec, &path, speaks),
            Family::Mutating => mutating(&mut errors, spec, &path, speaks),
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        match self.family {
            Family::Validating => &VALIDATING,
            Family::Mutating => &MUTATING,
        }
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let rules = match self.family {
            Family::Validating => items(obj, "/spec/validations").len(),
            Family::Mutating => items(obj, "/spec/mutations").len(),
        };
        let kind = at(obj, "/spec/paramKind");
        let shown = match kind.is_object() {
            true => format!("{}/{}", text(kind, "/apiVersion"), text(kind, "/kind")),
            false => "<unset>".to_owned(),
        };
        vec![table::name(obj), rules.into(), shown.into(), table::age(obj, now)]
    }
}

fn param_kind(errors: &mut Vec<Error>, given: &Value, path: &Path) {
    let (version, kind) = (text(given, "/apiVersion"), text(given, "/kind"));
    let at_version = path.child("apiVersion");
    if version.is_empty() {
        errors.push(Error::required(&at_version, ""));
    } else if version.split('/').count() > 2 {
        errors.push(Error::invalid(
            &at_version,
            version,
            format!("unexpected GroupVersion string: {version}"),
        ));
    }
    if kind.is_empty() {
        errors.push(Error::required(&path.child("kind"), ""));
        return;
    }
    let wrong = dns1035_label(&kind.to_lowercase());
    if !wrong.is_empty() {
        let words = format!("may have mixed case, but should otherwise match: {}", wrong.join(","));
        errors.push(Error::invalid(&path.child("kind"), kind, words));
    }
}

fn variables(errors: &mut Vec<Error>, all: &[Value], path: &Path, speaks: Speaks) {
    bounded(errors, all, path);
    let mut seen = BTreeSet::new();
    for (i, variable) in all.iter().take(EXPRESSIONS_MAX).enumerate() {
        let path = path.index(i);
        let (name, at_name) = (text(variable, "/name"), path.child("name"));
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() {
            errors.push(Error::required(&at_name, "name is not specified"));
        } else if !name.chars().all(letters) || name.starts_with(|c: char| c.is_ascii_digit()) {
            errors.push(Error::invalid(&at_name, name, "name is not a valid CEL identifier"));
        } else if !seen.insert(name) {
            errors.push(Error::duplicate(&at_name, name));
        }
        admission_cel::check(errors, variable, "expression", &path, speaks);
    }
}

fn bounded(errors: &mut Vec<Error>, all: &[Value], path: &Path) {
    if all.len() > EXPRESSIONS_MAX {
        errors.push(Error::too_many(path, all.len(), EXPRESSIONS_MAX));
    }
}

fn validating(errors: &mut Vec<Error>, obj: &Value, spec: &Value, path: &Path, speaks: Speaks) {
    let (rules, notes) = (items(spec, "/validations"), items(spec, "/auditAnnotations"));
    let (at_rules, at_notes) = (path.child("validations"), path.child("auditAnnotations"));
    if rules.is_empty() && notes.is_empty() {
        let words = "validations or auditAnnotations must contain at least one item";
        errors.push(Error::required(&at_rules, words));
        errors.push(Error::required(&at_notes, words));
        return;
    }
    bounded(errors, rules, &at_rules);
    for (i, rule) in rules.iter().take(EXPRESSIONS_MAX).enumerate() {
        validation(errors, rule, &at_rules.index(i), speaks);
    }
    if notes.len() > ANNOTATIONS_MAX {
        let words = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.push(Error::invalid(&at_notes, notes.to_vec(), words));
    }
    let mut seen = BTreeSet::new();
    for (i, note) in notes.iter().take(ANNOTATIONS_MAX).enumerate() {
        let (path, key) = (at_notes.index(i), text(note, "/key"));
        if key.is_empty() {
            errors.push(Error::required(&path.child("key"), "key is not specified"));
        } else {
            let full = format!("{}/{key}", text(obj, "/metadata/name"));
            let wrong =
                qualified_name(&full).into_iter().map(|w| format!("({full:?} is not a qualified name): {w}"));
            check::words(errors, &path.child("key"), key, wrong.collect());
            if !seen.insert(key) {
                errors.push(Error::duplicate(&path.child("key"), key));
            }
        }
        admission_cel::check(errors, note, "valueExpression", &path, speaks);
    }
}

fn validation(errors: &mut Vec<Error>, rule: &Value, path: &Path, speaks: Speaks) {
    admission_cel::check(errors, rule, "expression", path, speaks);
    let (said, message) = (text(rule, "/messageExpression"), text(rule, "/message"));
    if !said.is_empty() && said.trim().is_empty() {
        let words = "must be non-empty if specified";
        errors.push(Error::invalid(&path.child("messageExpression"), said, words));
    } else if !said.is_empty() {
        admission_cel::check(errors, rule, "messageExpression", path, Speaks::MESSAGE);
    }
    let at_message = path.child("message");
    if !message.is_empty() && message.trim().is_empty() {
        errors.push(Error::invalid(&at_message, message, "message must be non-empty if specified"));
    } else if message.trim().contains('\n') {
        errors.push(Error::invalid(&at_message, message, "message must not contain line breaks"));
    } else if message.is_empty() && said.is_empty() && text(rule, "/expression").trim().contains('\n') {
        let words = "message must be specified if expression contains line breaks";
        errors.push(Error::required(&at_message, words));
    }
    check::one_of(errors, &path.child("reason"), text(rule, "/reason"), &REASONS, false);
}

fn mutating(errors: &mut Vec<Error>, spec: &Value, path: &Path, speaks: Speaks) {
    let (all, at_all) = (items(spec, "/mutations"), path.child("mutations"));
    if all.is_empty() {
        errors.push(Error::required(&at_all, "mutations must contain at least one item"));
    }
    bounded(errors, all, &at_all);
    for (i, mutation) in all.iter().take(EXPRESSIONS_MAX).enumerate() {
        let (path, kind) = (at_all.index(i), text(mutation, "/patchType"));
        check::one_of(errors, &path.child("patchType"), kind, &PATCHES, true);
        for (this, field) in [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")] {
            let (given, path) = (at(mutation, &format!("/{field}")), path.child(field));
            match (kind == this, given.is_object()) {
                (true, true) => admission_cel::check(errors, given, "expression", &path, speaks),
                (true, false) => {
                    errors.push(Error::required(&path, format!("must be specified when patchType is {this}")))
                }
                (false, true) if PATCHES.contains(&kind) => {
                    errors.push(Error::invalid(
                        &path,
                        given.clone(),
                        format!("must not be specified when patchType is {kind}"),
                    ));
                }
                _ => {}
            }
        }
    }
    let policy = text(spec, "/reinvocationPolicy");
    check::one_of(errors, &path.child("reinvocationPolicy"), policy, &["IfNeeded", "Never"], true);
}
