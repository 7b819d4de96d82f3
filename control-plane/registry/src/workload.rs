//! What Deployment and ReplicaSet share: a selector, a pod template, and a number of replicas.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use crate::check;
use crate::pod::{defaults, validation};
use crate::value::{at, number, object, present, remove, text};

/// Fills in `spec.template`.
pub fn default_template(spec: &mut Value) {
    let Some(template) = object(spec, "template") else { return };
    // A name or a time in a template means nothing.
    if let Some(metadata) = object(template, "metadata")
        && metadata.get("creationTimestamp").is_some_and(Value::is_null)
    {
        remove(metadata, "creationTimestamp");
    }
    if let Some(pod) = object(template, "spec") {
        defaults::pod_spec(pod, defaults::Place::Template);
    }
}

/// `spec.selector`, where an empty one is as good as none: decoding does not tell them apart.
pub fn given_selector(spec: &Value) -> &Value {
    let selector = at(spec, "/selector");
    if check::selector_is_empty(selector) { &Value::Null } else { selector }
}

/// Errors of `spec.selector`: it must be given and valid.
pub fn selector(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let path = path.child("selector");
    match given_selector(spec) {
        Value::Null => errors.push(Error::required(&path, "")),
        selector => check::label_selector(errors, &path, selector),
    }
}

/// Errors of `spec.template`, with `selector` valid and matching its labels.
pub fn template(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let (template, path) = (at(spec, "/template"), path.child("template"));
    let selector = given_selector(spec);
    let labels = at(template, "/metadata/labels");
    if !selector.is_null() && !check::selector_is_valid(selector) {
        return;
    }
    let unmatched = selector.is_null()
        || (!check::selector_is_empty(selector) && !check::selector_matches(selector, labels));
    if unmatched {
        errors.push(Error::invalid(
            &path.child("metadata").child("labels"),
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    let metadata = path.child("metadata");
    errors.extend(rules::labels(template.pointer("/metadata/labels"), &metadata.child("labels")));
    errors.extend(rules::annotations(
        template.pointer("/metadata/annotations"),
        &metadata.child("annotations"),
    ));
    let (pod, path) = (at(template, "/spec"), path.child("spec"));
    errors.extend(validation::pod_spec(pod, &path));
    let policy = text(pod, "/restartPolicy");
    if policy != "Always" && validation::RESTART_POLICIES.contains(&policy) {
        errors.push(Error::not_supported(&path.child("restartPolicy"), policy, &["Always"]));
    }
    if present(pod, "/activeDeadlineSeconds") {
        errors.push(Error::forbidden(
            &path.child("activeDeadlineSeconds"),
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

/// Numbers in a status that may not be negative, and those that may not be above `replicas`.
pub fn status(errors: &mut Vec<Error>, obj: &Value, counts: &[&'static str], bounded: &[&'static str]) {
    let path = Path::new("status");
    for field in counts {
        let value = at(obj, &format!("/status/{field}"));
        check::non_negative(errors, &path.child(*field), value);
    }
    let replicas = number(obj, "/status/replicas");
    for field in bounded {
        let n = number(obj, &format!("/status/{field}"));
        if n > replicas {
            errors.push(Error::invalid(&path.child(*field), n, "cannot be greater than status.replicas"));
        }
    }
}
