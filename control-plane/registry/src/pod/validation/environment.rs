//! Environment variables, and references to fields and resources of the pod.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use crate::check::{self, words};
use crate::value::{at, present, text};

fn is_env_name(name: &str) -> bool {
    name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=')
}

const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

/// `env`.
pub fn environment(errors: &mut Vec<Error>, env: &[Value], path: &Path) {
    for (i, e) in env.iter().enumerate() {
        let path = path.index(i);
        match text(e, "/name") {
            "" => errors.push(Error::required(&path.child("name"), "")),
            name if !is_env_name(name) => errors.push(Error::invalid(&path.child("name"), name, ENV_NAME)),
            _ => {}
        }
        if present(e, "/valueFrom") {
            env_source(errors, e, &path.child("valueFrom"));
        }
    }
}

fn env_source(errors: &mut Vec<Error>, e: &Value, path: &Path) {
    let source = at(e, "/valueFrom");
    let mut sources = 0;
    for (kind, value) in source.as_object().into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        sources += 1;
        match kind.as_str() {
            "fieldRef" => field_ref(errors, value, &path.child("fieldRef"), &ENV_FIELDS),
            "resourceFieldRef" => resource_field_ref(errors, value, &path.child("resourceFieldRef")),
            "configMapKeyRef" => check::key_reference(errors, &path.child("configMapKeyRef"), value),
            "secretKeyRef" => check::key_reference(errors, &path.child("secretKeyRef"), value),
            _ => {}
        }
    }
    if sources == 0 {
        errors.push(Error::invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        ));
    } else if !text(e, "/value").is_empty() {
        errors.push(Error::invalid(path, "", "may not be specified when `value` is not empty"));
    } else if sources > 1 {
        errors.push(Error::invalid(path, "", "may not have more than one field specified at a time"));
    }
}

/// Fields that an environment variable may name.
pub const ENV_FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that a downward API volume may name.
pub const VOLUME_FIELDS: [&str; 5] =
    ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Field labels that the API knows but that not every place takes.
const KNOWN_FIELDS: [&str; 6] = [
    "metadata.annotations",
    "metadata.labels",
    "spec.restartPolicy",
    "spec.schedulerName",
    "status.phase",
    "spec.hostNetwork",
];

/// A reference to a field of the pod.
pub fn field_ref(errors: &mut Vec<Error>, reference: &Value, path: &Path, fields: &[&str]) {
    if text(reference, "/apiVersion").is_empty() {
        errors.push(Error::required(&path.child("apiVersion"), ""));
        return;
    }
    let field = text(reference, "/fieldPath");
    let path_of = path.child("fieldPath");
    if field.is_empty() {
        errors.push(Error::required(&path_of, ""));
        return;
    }
    if let Some((map, key)) = field.strip_suffix(']').and_then(|f| f.split_once("['")) {
        let key = key.strip_suffix('\'').unwrap_or(key);
        match map {
            "metadata.annotations" => words(errors, path, key, rules::qualified_name(&key.to_lowercase())),
            "metadata.labels" => words(errors, path, key, rules::qualified_name(key)),
            _ => errors.push(Error::invalid(path, field, "does not support subscript")),
        }
        return;
    }
    if fields.contains(&field) {
        return;
    }
    if ENV_FIELDS.contains(&field) || KNOWN_FIELDS.contains(&field) || VOLUME_FIELDS.contains(&field) {
        errors.push(Error::not_supported(&path_of, field, &sorted(fields)));
    } else {
        let detail = format!("error converting fieldPath: field label not supported: {field}");
        errors.push(Error::invalid(&path_of, field, detail));
    }
}

fn sorted<'a>(fields: &[&'a str]) -> Vec<&'a str> {
    let mut all = fields.to_vec();
    all.sort_unstable();
    all
}

const RESOURCE_FIELDS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A reference to a resource of a container.
pub fn resource_field_ref(errors: &mut Vec<Error>, reference: &Value, path: &Path) {
    match text(reference, "/resource") {
        "" => errors.push(Error::required(&path.child("resource"), "")),
        r if r.contains("hugepages-") || RESOURCE_FIELDS.contains(&r) => {}
        r => errors.push(Error::not_supported(&path.child("resource"), r, &RESOURCE_FIELDS)),
    }
}

/// `envFrom`.
pub fn environment_from(errors: &mut Vec<Error>, sources: &[Value], path: &Path) {
    for (i, source) in sources.iter().enumerate() {
        let path = path.index(i);
        let prefix = text(source, "/prefix");
        if !prefix.is_empty() && !is_env_name(prefix) {
            errors.push(Error::invalid(&path.child("prefix"), prefix, ENV_NAME));
        }
        let mut given = 0;
        for kind in ["configMapRef", "secretRef"] {
            let reference = at(source, &format!("/{kind}"));
            if reference.is_null() {
                continue;
            }
            given += 1;
            if text(reference, "/name").is_empty() {
                errors.push(Error::required(&path.child(kind).child("name"), ""));
            }
        }
        match given {
            0 => errors.push(Error::invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => {
                errors.push(Error::invalid(&path, "", "may not have more than one field specified at a time"))
            }
        }
    }
}
