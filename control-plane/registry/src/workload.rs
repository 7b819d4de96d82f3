//! What the kinds share that run pods from a template: a selector, the template, and a number of replicas.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use crate::check;
use crate::pod::{defaults, validation};
use crate::value::{at, items, number, object, present, remove, text};

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

/// Errors of `spec.selector`, which must be given, and of `spec.template`, which must carry its labels. `owner` is the kind
/// that keeps the pods, in the words of Kubernetes.
pub fn selected_template(errors: &mut Vec<Error>, spec: &Value, path: &Path, owner: &str) {
    selector(errors, spec, path);
    let given = at(spec, "/selector");
    if !given.is_null() && !check::selector_is_valid(given) {
        errors.push(Error::invalid(&path.child("selector"), given.clone(), "invalid label selector"));
        return;
    }
    let selector = given_selector(spec);
    let matches = !selector.is_null() && check::selector_matches(selector, template_labels(spec));
    if !matches {
        unmatched(errors, spec, path);
    }
    lasting_template(errors, spec, path, owner);
}

fn template_labels(spec: &Value) -> &Value {
    at(spec, "/template/metadata/labels")
}

/// Says that a template does not carry the labels that its selector wants.
pub fn unmatched(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let path = path.child("template").child("metadata").child("labels");
    let words = "`selector` does not match template `labels`";
    errors.push(Error::invalid(&path, template_labels(spec).clone(), words));
}

/// Errors of a pod template at `path`, whatever its pods are for.
pub fn template(errors: &mut Vec<Error>, template: &Value, path: &Path) {
    let metadata = path.child("metadata");
    errors.extend(rules::labels(template.pointer("/metadata/labels"), &metadata.child("labels")));
    errors.extend(rules::annotations(
        template.pointer("/metadata/annotations"),
        &metadata.child("annotations"),
    ));
    errors.extend(validation::pod_spec(at(template, "/spec"), &path.child("spec")));
    if !items(template, "/spec/ephemeralContainers").is_empty() {
        let path = path.child("spec").child("ephemeralContainers");
        errors.push(Error::forbidden(&path, "ephemeral containers not allowed in pod template"));
    }
}

/// Errors of `spec.template`, whose pods `owner` starts again for ever.
pub fn lasting_template(errors: &mut Vec<Error>, spec: &Value, path: &Path, owner: &str) {
    let path = path.child("template");
    template(errors, at(spec, "/template"), &path);
    let (pod, path) = (at(spec, "/template/spec"), path.child("spec"));
    let policy = text(pod, "/restartPolicy");
    if policy != "Always" && validation::RESTART_POLICIES.contains(&policy) {
        errors.push(Error::not_supported(&path.child("restartPolicy"), policy, &["Always"]));
    }
    if present(pod, "/activeDeadlineSeconds") {
        errors.push(Error::forbidden(
            &path.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {owner} is not Supported"),
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
