//! Containers: names, images, ports, mounts, security. Environment, probes and resources have files of their own.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use super::environment::{environment, environment_from};
use super::id;
use super::probes::{lifecycle, probes};
use super::resources::resources;
use crate::check::{self, words};
use crate::go_struct;
use crate::value::{at, items, number, present, text};

const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];
const MESSAGE_POLICIES: [&str; 2] = ["FallbackToLogsOnError", "File"];

/// Containers and init containers. `volumes` are the names of the pod's volumes that are well formed.
pub fn containers(errors: &mut Vec<Error>, spec: &Value, path: &Path, volumes: &[String]) {
    let list = items(spec, "/containers");
    if list.is_empty() {
        errors.push(Error::required(&path.child("containers"), ""));
    }
    let mut names = Vec::new();
    for (i, c) in list.iter().enumerate() {
        let path = path.child("containers").index(i);
        container(errors, c, &path, volumes, &mut names);
        probes(errors, c, &path);
        lifecycle(errors, c, &path);
    }
    let host_ports: &mut Vec<String> = &mut Vec::new();
    for (i, c) in list.iter().enumerate() {
        used_host_ports(errors, c, &path.child("containers").index(i), host_ports);
    }
    for (i, c) in items(spec, "/initContainers").iter().enumerate() {
        let path = path.child("initContainers").index(i);
        container(errors, c, &path, volumes, &mut names);
        let sidecar = text(c, "/restartPolicy") == "Always";
        if sidecar {
            probes(errors, c, &path);
            lifecycle(errors, c, &path);
            continue;
        }
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if present(c, &format!("/{field}")) {
                errors.push(Error::forbidden(
                    &path.child(field),
                    "may not be set for init containers without restartPolicy=Always",
                ));
            }
        }
    }
}

/// What holds for every container: name, image, ports, environment, mounts, resources, security.
pub fn container(
    errors: &mut Vec<Error>,
    c: &Value,
    path: &Path,
    volumes: &[String],
    names: &mut Vec<String>,
) {
    let name = text(c, "/name");
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        words(errors, &path.child("name"), name, rules::dns1123_label(name));
        if names.iter().any(|n| n == name) {
            errors.push(Error::duplicate(&path.child("name"), name));
        } else {
            names.push(name.to_string());
        }
    }
    if text(c, "/image").is_empty() {
        errors.push(Error::required(&path.child("image"), ""));
    }
    let policy = text(c, "/terminationMessagePolicy");
    check::one_of(errors, &path.child("terminationMessagePolicy"), policy, &MESSAGE_POLICIES, true);
    ports(errors, items(c, "/ports"), &path.child("ports"));
    environment(errors, items(c, "/env"), &path.child("env"));
    environment_from(errors, items(c, "/envFrom"), &path.child("envFrom"));
    mounts(errors, items(c, "/volumeMounts"), &path.child("volumeMounts"), volumes);
    check::one_of(errors, &path.child("imagePullPolicy"), text(c, "/imagePullPolicy"), &PULL_POLICIES, true);
    resources(errors, at(c, "/resources"), &path.child("resources"));
    security(errors, at(c, "/securityContext"), &path.child("securityContext"));
}

fn ports(errors: &mut Vec<Error>, ports: &[Value], path: &Path) {
    let mut names = Vec::new();
    for (i, p) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(p, "/name");
        if !name.is_empty() {
            let wrong = check::port_name(name);
            if wrong.is_empty() && names.contains(&name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            words(errors, &path.child("name"), name, wrong);
            names.push(name);
        }
        match number(p, "/containerPort") {
            0 => errors.push(Error::required(&path.child("containerPort"), "")),
            n => check::port(errors, &path.child("containerPort"), n),
        }
        match number(p, "/hostPort") {
            0 => {}
            n => check::port(errors, &path.child("hostPort"), n),
        }
        check::one_of(errors, &path.child("protocol"), text(p, "/protocol"), &["SCTP", "TCP", "UDP"], true);
    }
}

fn used_host_ports(errors: &mut Vec<Error>, c: &Value, path: &Path, used: &mut Vec<String>) {
    for (i, p) in items(c, "/ports").iter().enumerate() {
        let port = number(p, "/hostPort");
        if port == 0 {
            continue;
        }
        let key = format!("{}/{}/{port}", text(p, "/protocol"), text(p, "/hostIP"));
        if used.contains(&key) {
            errors.push(Error::duplicate(&path.child("ports").index(i).child("hostPort"), key));
        } else {
            used.push(key);
        }
    }
}

fn mounts(errors: &mut Vec<Error>, mounts: &[Value], path: &Path, volumes: &[String]) {
    let mut points = Vec::new();
    for (i, m) in mounts.iter().enumerate() {
        let path = path.index(i);
        let name = text(m, "/name");
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        if !volumes.iter().any(|v| v == name) {
            errors.push(Error::not_found(&path.child("name"), name));
        }
        let point = text(m, "/mountPath");
        if point.is_empty() {
            errors.push(Error::required(&path.child("mountPath"), ""));
        }
        if points.contains(&point) {
            errors.push(Error::invalid(&path.child("mountPath"), point, "must be unique"));
        }
        points.push(point);
        for field in ["subPath", "subPathExpr"] {
            let sub = text(m, &format!("/{field}"));
            if sub.starts_with('/') {
                errors.push(Error::invalid(&path.child(field), sub, "must be a relative path"));
            } else if sub.split('/').any(|part| part == "..") {
                errors.push(Error::invalid(&path.child(field), sub, "must not contain '..'"));
            }
        }
        if !text(m, "/subPath").is_empty() && !text(m, "/subPathExpr").is_empty() {
            errors.push(Error::invalid(
                &path.child("subPathExpr"),
                text(m, "/subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
    }
}

fn security(errors: &mut Vec<Error>, context: &Value, path: &Path) {
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(value) = context.get(field) {
            id(errors, &path.child(field), value);
        }
    }
    if at(context, "/allowPrivilegeEscalation").as_bool() == Some(false) && super::privileged(context) {
        let words = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
        let shown = go_struct::shown(context, &go_struct::SECURITY_CONTEXT);
        errors.push(Error::invalid(path, context.clone(), words).shown_as(shown));
    }
}
