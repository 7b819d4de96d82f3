//! What must hold of a definition.

use std::collections::BTreeSet;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation::{dns1035_label, dns1123_subdomain};
use coracle_api::schema::structural;
use serde_json::Value;

use super::json_path::JsonPath;
use super::{names, rules};
use crate::admission_webhook::client_config;
use crate::check;
use crate::value::{at, flag, items, present, text};

/// The most selectable fields of a version.
const MAX_SELECTABLE: usize = 8;

/// Everything wrong with a new definition.
pub(super) fn create(definition: &Value) -> Vec<Error> {
    let (spec, path) = (at(definition, "/spec"), Path::new("spec"));
    let mut errors = Vec::new();
    let name = format!("{}.{}", text(spec, "/names/plural"), text(spec, "/group"));
    let given = text(definition, "/metadata/name");
    if given != name {
        let words = "must be spec.names.plural+\".\"+spec.group";
        errors.push(Error::invalid(&Path::new("metadata").child("name"), given, words));
    }
    group(&mut errors, definition, spec, &path);
    check::one_of(&mut errors, &path.child("scope"), text(spec, "/scope"), &["Cluster", "Namespaced"], true);
    names_are_right(&mut errors, at(spec, "/names"), &path.child("names"));
    if flag(spec, "/preserveUnknownFields") {
        let words = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(Error::invalid(&path.child("preserveUnknownFields"), true, words));
    }
    conversion(&mut errors, at(spec, "/conversion"), &path.child("conversion"));
    versions(&mut errors, spec, &path);
    errors
}

/// Everything wrong with a change.
pub(super) fn update(new: &Value, old: &Value) -> Vec<Error> {
    let mut errors = create(new);
    let spec = Path::new("spec");
    let mut fixed = vec![
        ("/spec/names/plural", spec.child("names").child("plural")),
        ("/spec/group", spec.child("group")),
    ];
    if names::is_established(old) {
        fixed.push(("/spec/scope", spec.child("scope")));
        fixed.push(("/spec/names/kind", spec.child("names").child("kind")));
    }
    for (pointer, path) in fixed {
        check::immutable(&mut errors, &path, at(new, pointer), at(old, pointer));
    }
    let has = |name: &str| items(new, "/spec/versions").iter().any(|v| text(v, "/name") == name);
    let stored = items(new, "/status/storedVersions");
    if let Some(version) = super::storage_version(new).filter(|v| !stored.iter().any(|s| s == v)) {
        let words = format!("must have the storage version {version}");
        let at_stored = Path::new("status").child("storedVersions");
        errors.push(Error::invalid(&at_stored, stored.to_vec(), words));
    }
    for (i, stored) in items(new, "/status/storedVersions").iter().filter_map(Value::as_str).enumerate() {
        if !has(stored) {
            let path = Path::new("status").child("storedVersions").index(i);
            errors.push(Error::invalid(&path, stored, "must appear in spec.versions"));
        }
    }
    errors
}

fn conversion(errors: &mut Vec<Error>, conversion: &Value, path: &Path) {
    let (strategy, webhook) = (text(conversion, "/strategy"), at(conversion, "/webhook"));
    check::one_of(errors, &path.child("strategy"), strategy, &["None", "Webhook"], true);
    let (config, versions) = (at(webhook, "/clientConfig"), items(webhook, "/conversionReviewVersions"));
    // Under the names of the kind's own, unpublished version, as Kubernetes words it.
    let (at_config, at_versions) =
        (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    if strategy != "Webhook" {
        let words = "should not be set when strategy is not set to Webhook";
        if config.is_object() {
            errors.push(Error::forbidden(&at_config, words));
        }
        if !versions.is_empty() {
            errors.push(Error::forbidden(&at_versions, words));
        }
        return;
    }
    match config.is_object() {
        true => client_config::check(errors, config, &at_config),
        false => errors.push(Error::required(&at_config, "required when strategy is set to Webhook")),
    }
    if versions.is_empty() {
        errors.push(Error::required(&at_versions, ""));
    } else if !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        let words = "must include at least one of v1, v1beta1";
        errors.push(Error::invalid(&at_versions, versions.to_vec(), words));
    }
}

fn group(errors: &mut Vec<Error>, definition: &Value, spec: &Value, path: &Path) {
    let (group, path) = (text(spec, "/group"), path.child("group"));
    if group.is_empty() {
        errors.push(Error::required(&path, ""));
        return;
    }
    check::words(errors, &path, group, dns1123_subdomain(group));
    if !group.contains('.') {
        errors.push(Error::invalid(&path, group, "should be a domain with at least one dot"));
    }
    let protected =
        |suffix: &str| group == suffix || group.strip_suffix(suffix).is_some_and(|g| g.ends_with('.'));
    let approved = at(definition, "/metadata/annotations").get("api-approved.kubernetes.io").is_some();
    if (protected("k8s.io") || protected("kubernetes.io")) && !approved {
        let path = Path::new("metadata").child("annotations").key("api-approved.kubernetes.io");
        let words = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(Error::required(&path, words));
    }
}

fn names_are_right(errors: &mut Vec<Error>, names: &Value, path: &Path) {
    for name in ["plural", "singular", "kind", "listKind"] {
        let (given, at) = (text(names, &format!("/{name}")), path.child(name));
        if given.is_empty() {
            errors.push(Error::required(&at, ""));
            continue;
        }
        let kind = name == "kind" || name == "listKind";
        let lower = if kind { given.to_lowercase() } else { given.to_owned() };
        for words in dns1035_label(&lower) {
            let words = if kind {
                format!("may have mixed case, but should otherwise match: {words}")
            } else {
                words
            };
            errors.push(Error::invalid(&at, given, words));
        }
    }
    for list in ["shortNames", "categories"] {
        for (i, name) in items(names, &format!("/{list}")).iter().filter_map(Value::as_str).enumerate() {
            check::words(errors, &path.child(list).index(i), name, dns1035_label(name));
        }
    }
    if !text(names, "/kind").is_empty() && text(names, "/kind") == text(names, "/listKind") {
        let words = "kind and listKind may not be the same";
        errors.push(Error::invalid(&path.child("listKind"), text(names, "/listKind"), words));
    }
}

fn versions(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let (all, path) = (items(spec, "/versions"), path.child("versions"));
    let names: Vec<&str> = all.iter().map(|v| text(v, "/name")).collect();
    let listed = || Value::from(names.clone());
    if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
        errors.push(Error::invalid(&path, listed(), "must contain unique version names"));
    }
    if all.iter().filter(|v| flag(v, "/storage")).count() != 1 {
        let words = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(&path, listed(), words));
    }
    for (i, version) in all.iter().enumerate() {
        one_version(errors, version, &path.index(i));
    }
}

fn one_version(errors: &mut Vec<Error>, version: &Value, path: &Path) {
    let name = text(version, "/name");
    check::words(errors, &path.child("name"), name, dns1035_label(name));
    let schema_path = path.child("schema").child("openAPIV3Schema");
    if present(version, "/schema/openAPIV3Schema") {
        match structural::parse(at(version, "/schema/openAPIV3Schema"), &schema_path) {
            Ok(schema) => errors.extend(rules::check(&schema, &schema_path)),
            Err(wrong) => errors.extend(wrong),
        }
    } else {
        errors.push(Error::required(&schema_path, "schemas are required"));
    }
    columns(errors, version, path);
    scale(errors, version, &path.child("subresources").child("scale"));
    let fields = items(version, "/selectableFields");
    let at_fields = path.child("selectableFields");
    if fields.len() > MAX_SELECTABLE {
        errors.push(Error::too_many(&at_fields, fields.len(), MAX_SELECTABLE));
    }
    for (i, field) in fields.iter().enumerate() {
        plain_path(errors, &at_fields.index(i).child("jsonPath"), text(field, "/jsonPath"), "");
    }
}

fn columns(errors: &mut Vec<Error>, version: &Value, path: &Path) {
    for (i, column) in items(version, "/additionalPrinterColumns").iter().enumerate() {
        let path = path.child("additionalPrinterColumns").index(i);
        if text(column, "/name").is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        let types = ["boolean", "date", "integer", "number", "string"];
        check::one_of(errors, &path.child("type"), text(column, "/type"), &types, true);
        let (given, at) = (text(column, "/jsonPath"), path.child("jsonPath"));
        if given.is_empty() {
            errors.push(Error::required(&at, ""));
        } else if let Err(words) = JsonPath::parse(given) {
            errors.push(Error::invalid(&at, given, format!("is an invalid path: {words}")));
        }
    }
}

fn scale(errors: &mut Vec<Error>, version: &Value, path: &Path) {
    let scale = at(version, "/subresources/scale");
    if scale.is_null() {
        return;
    }
    plain_path(errors, &path.child("specReplicasPath"), text(scale, "/specReplicasPath"), ".spec.");
    plain_path(errors, &path.child("statusReplicasPath"), text(scale, "/statusReplicasPath"), ".status.");
    let labels = text(scale, "/labelSelectorPath");
    if !labels.is_empty() && !labels.starts_with(".spec.") {
        plain_path(errors, &path.child("labelSelectorPath"), labels, ".status.");
    }
}

/// A path of fields alone, below some prefix.
fn plain_path(errors: &mut Vec<Error>, path: &Path, given: &str, below: &str) {
    if given.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    match JsonPath::parse(given).map(|p| p.fields().is_some()) {
        Ok(true) if given.starts_with(below) => {}
        Ok(true) => errors.push(Error::invalid(
            path,
            given,
            format!("should be a json path under {}", below.trim_end_matches('.')),
        )),
        Ok(false) => {
            errors.push(Error::invalid(path, given, "should be a simple path without array notation"))
        }
        Err(words) => errors.push(Error::invalid(path, given, format!("is an invalid path: {words}"))),
    }
}
