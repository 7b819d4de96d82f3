//! Volumes of a pod.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::quantity::Quantity;
use serde_json::Value;

use super::environment::{VOLUME_FIELDS, field_ref, resource_field_ref};
use crate::check::words;
use crate::persistent_volume_claim::claim_spec;
use crate::value::{at, items, maybe_number, present, text};

/// Checks volumes; answers the names of those that can be mounted.
pub fn volumes(errors: &mut Vec<Error>, path: &Path, volumes: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (i, v) in volumes.iter().enumerate() {
        let path = path.index(i);
        let before = errors.len();
        source(errors, v, &path);
        let name = text(v, "/name");
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        } else {
            words(errors, &path.child("name"), name, rules::dns1123_label(name));
        }
        if names.iter().any(|n| n == name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        }
        if errors.len() == before {
            names.push(name.to_string());
        }
    }
    names
}

/// Kinds of volumes in the order in which Kubernetes looks at them.
const KINDS: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

fn source(errors: &mut Vec<Error>, v: &Value, path: &Path) {
    let mut given = 0;
    for kind in KINDS {
        let source = at(v, &format!("/{kind}"));
        if source.is_null() {
            continue;
        }
        given += 1;
        let path = path.child(kind);
        if given > 1 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        volume_source(errors, kind, source, &path);
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a volume type"));
    }
}

/// Errors of one source of a volume, at `path`. A kind that says nothing more has none.
pub fn volume_source(errors: &mut Vec<Error>, kind: &str, source: &Value, path: &Path) {
    let required = |errors: &mut Vec<Error>, fields: &[&'static str]| {
        for field in fields {
            if text(source, &format!("/{field}")).is_empty() {
                errors.push(Error::required(&path.child(*field), ""));
            }
        }
    };
    match kind {
        "hostPath" => host_path(errors, source, path),
        "secret" => keyed(errors, source, path, "secretName"),
        "configMap" => keyed(errors, source, path, "name"),
        "persistentVolumeClaim" => required(errors, &["claimName"]),
        "downwardAPI" => downward(errors, source, path),
        "projected" => projected(errors, source, path),
        "nfs" => {
            required(errors, &["server", "path"]);
            let place = text(source, "/path");
            if !place.is_empty() && !place.starts_with('/') {
                errors.push(Error::invalid(&path.child("path"), place, "must be an absolute path"));
            }
        }
        "csi" => required(errors, &["driver"]),
        "emptyDir" => empty_dir(errors, source, path),
        "ephemeral" => ephemeral(errors, source, path),
        "image" => required(errors, &["reference"]),
        _ => {}
    }
}

fn empty_dir(errors: &mut Vec<Error>, source: &Value, path: &Path) {
    let limit = text(source, "/sizeLimit");
    if Quantity::parse(limit).is_ok_and(|q| q.sign() < 0) {
        errors.push(Error::forbidden(
            &path.child("sizeLimit"),
            "SizeLimit field must be a valid resource quantity",
        ));
    }
}

fn ephemeral(errors: &mut Vec<Error>, source: &Value, path: &Path) {
    let path = path.child("volumeClaimTemplate");
    match at(source, "/volumeClaimTemplate") {
        Value::Null => errors.push(Error::required(&path, "")),
        template => errors.extend(claim_spec(at(template, "/spec"), &path.child("spec"))),
    }
}

fn mode(errors: &mut Vec<Error>, path: &Path, source: &Value, field: &'static str) {
    if let Some(mode) = maybe_number(source, &format!("/{field}"))
        && !(0..=0o777).contains(&mode)
    {
        errors.push(Error::invalid(
            &path.child(field),
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        ));
    }
}

fn host_path(errors: &mut Vec<Error>, source: &Value, path: &Path) {
    let place = text(source, "/path");
    if place.is_empty() {
        errors.push(Error::required(&path.child("path"), ""));
    } else if place.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(&path.child("path"), place, "must not contain '..'"));
    }
}

/// A volume made of the keys of a ConfigMap or Secret.
fn keyed(errors: &mut Vec<Error>, source: &Value, path: &Path, name: &'static str) {
    if text(source, &format!("/{name}")).is_empty() {
        errors.push(Error::required(&path.child(name), ""));
    }
    mode(errors, path, source, "defaultMode");
    key_paths(errors, source, path);
}

fn key_paths(errors: &mut Vec<Error>, source: &Value, path: &Path) {
    for (i, item) in items(source, "/items").iter().enumerate() {
        let path = path.child("items").index(i);
        if text(item, "/key").is_empty() {
            errors.push(Error::required(&path.child("key"), ""));
        }
        local_path(errors, &path.child("path"), text(item, "/path"));
        mode(errors, &path, item, "mode");
    }
}

fn local_path(errors: &mut Vec<Error>, path: &Path, value: &str) {
    if value.is_empty() {
        errors.push(Error::required(path, ""));
    } else if value.starts_with('/') {
        errors.push(Error::invalid(path, value, "must be a relative path"));
    } else if value.split('/').any(|part| part == "..") {
        errors.push(Error::invalid(path, value, "must not contain '..'"));
    } else if value.starts_with("..") {
        errors.push(Error::invalid(path, value, "must not start with '..'"));
    }
}

fn downward(errors: &mut Vec<Error>, source: &Value, path: &Path) {
    mode(errors, path, source, "defaultMode");
    for (i, item) in items(source, "/items").iter().enumerate() {
        let path = path.child("items").index(i);
        local_path(errors, &path.child("path"), text(item, "/path"));
        match (present(item, "/fieldRef"), present(item, "/resourceFieldRef")) {
            (true, true) => errors.push(Error::invalid(
                &path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
            (true, false) => {
                field_ref(errors, at(item, "/fieldRef"), &path.child("fieldRef"), &VOLUME_FIELDS)
            }
            (false, true) => {
                let path = path.child("resourceFieldRef");
                if text(item, "/resourceFieldRef/containerName").is_empty() {
                    errors.push(Error::required(&path.child("containerName"), ""));
                }
                resource_field_ref(errors, at(item, "/resourceFieldRef"), &path);
            }
            (false, false) => {
                errors.push(Error::required(&path, "one of fieldRef and resourceFieldRef is required"))
            }
        }
    }
}

fn projected(errors: &mut Vec<Error>, source: &Value, path: &Path) {
    mode(errors, path, source, "defaultMode");
    for (i, s) in items(source, "/sources").iter().enumerate() {
        let path = path.child("sources").index(i);
        for kind in ["secret", "configMap"] {
            let inner = at(s, &format!("/{kind}"));
            if inner.is_null() {
                continue;
            }
            if text(inner, "/name").is_empty() {
                errors.push(Error::required(&path.child(kind).child("name"), ""));
            }
            key_paths(errors, inner, &path.child(kind));
        }
        if present(s, "/downwardAPI") {
            downward(errors, at(s, "/downwardAPI"), &path.child("downwardAPI"));
        }
        let token = at(s, "/serviceAccountToken");
        if !token.is_null() {
            let path = path.child("serviceAccountToken");
            let seconds = maybe_number(token, "/expirationSeconds").unwrap_or(3600);
            if seconds < 600 {
                errors.push(Error::invalid(
                    &path.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                ));
            }
            local_path(errors, &path.child("path"), text(token, "/path"));
        }
    }
}
