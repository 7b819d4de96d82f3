//! Containers: names, images, ports, environment, mounts, probes, lifecycle, resources, security.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::quantity::Quantity;
use serde_json::Value;

use super::id;
use crate::check::{self, words};
use crate::value::{at, entries, items, number, present, text};

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

fn container(errors: &mut Vec<Error>, c: &Value, path: &Path, volumes: &[String], names: &mut Vec<String>) {
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

fn is_env_name(name: &str) -> bool {
    name.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=')
}

const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn environment(errors: &mut Vec<Error>, env: &[Value], path: &Path) {
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
            "fieldRef" => field_ref(errors, value, &path.child("fieldRef"), &ENV_FIELDS, true),
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
pub fn field_ref(errors: &mut Vec<Error>, reference: &Value, path: &Path, fields: &[&str], _env: bool) {
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

fn environment_from(errors: &mut Vec<Error>, sources: &[Value], path: &Path) {
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

fn probes(errors: &mut Vec<Error>, c: &Value, path: &Path) {
    for (name, one_success) in [("livenessProbe", true), ("readinessProbe", false), ("startupProbe", true)] {
        let p = at(c, &format!("/{name}"));
        if p.is_null() {
            continue;
        }
        let path = path.child(name);
        handler(errors, p, &path);
        for field in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            check::non_negative(errors, &path.child(field), at(p, &format!("/{field}")));
        }
        if let Some(grace) = at(p, "/terminationGracePeriodSeconds").as_i64()
            && grace <= 0
        {
            errors.push(Error::invalid(
                &path.child("terminationGracePeriodSeconds"),
                grace,
                "must be greater than 0",
            ));
        }
        if one_success && number(p, "/successThreshold") != 1 {
            let n = number(p, "/successThreshold");
            errors.push(Error::invalid(&path.child("successThreshold"), n, "must be 1"));
        }
    }
}

fn lifecycle(errors: &mut Vec<Error>, c: &Value, path: &Path) {
    for hook in ["postStart", "preStop"] {
        let h = at(c, &format!("/lifecycle/{hook}"));
        if !h.is_null() {
            handler(errors, h, &path.child("lifecycle").child(hook));
        }
    }
}

/// An action: of exec, httpGet, tcpSocket, grpc and sleep exactly one.
fn handler(errors: &mut Vec<Error>, h: &Value, path: &Path) {
    let mut given = 0;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        let action = at(h, &format!("/{kind}"));
        if action.is_null() {
            continue;
        }
        given += 1;
        let path = path.child(kind);
        if given > 1 {
            errors.push(Error::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        match kind {
            "exec" if items(action, "/command").is_empty() => {
                errors.push(Error::required(&path.child("command"), ""));
            }
            "httpGet" => {
                if text(action, "/path").is_empty() {
                    errors.push(Error::required(&path.child("path"), ""));
                }
                check::port_or_name(errors, &path.child("port"), at(action, "/port"));
                check::one_of(
                    errors,
                    &path.child("scheme"),
                    text(action, "/scheme"),
                    &["HTTP", "HTTPS"],
                    false,
                );
            }
            "tcpSocket" => check::port_or_name(errors, &path.child("port"), at(action, "/port")),
            "grpc" => check::port(errors, &path.child("port"), number(action, "/port")),
            _ => {}
        }
    }
    if given == 0 {
        errors.push(Error::required(path, "must specify a handler type"));
    }
}

fn resources(errors: &mut Vec<Error>, r: &Value, path: &Path) {
    let quantity = |v: &Value| v.as_str().and_then(|s| Quantity::parse(s).ok());
    for (name, value) in entries(r, "/limits") {
        let path = path.child("limits").key(name.as_str());
        resource_name(errors, &path, name);
        amount(errors, &path, name, value);
    }
    for (name, value) in entries(r, "/requests") {
        let keyed = path.child("requests").key(name.as_str());
        resource_name(errors, &keyed, name);
        amount(errors, &keyed, name, value);
        let Some(limit) = at(r, "/limits").get(name) else { continue };
        if let (Some(request), Some(most)) = (quantity(value), quantity(limit)) {
            let words = if extended(name) && request != most {
                format!("must be equal to {name} limit of {}", limit.as_str().unwrap_or_default())
            } else if request > most {
                format!(
                    "must be less than or equal to {name} limit of {}",
                    limit.as_str().unwrap_or_default()
                )
            } else {
                continue;
            };
            errors.push(Error::invalid(&path.child("requests"), value.clone(), words));
        }
    }
}

fn standard(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-")
}

fn extended(name: &str) -> bool {
    name.contains('/')
        && !name.starts_with("requests.")
        && !name.split('/').next().unwrap_or_default().ends_with("kubernetes.io")
}

/// Names that are standard somewhere, in quotas for instance, though not for containers.
const STANDARD_ELSEWHERE: [&str; 17] = [
    "storage",
    "pods",
    "services",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "services.nodeports",
    "services.loadbalancers",
];

fn resource_name(errors: &mut Vec<Error>, path: &Path, name: &str) {
    let wrong = rules::qualified_name(name);
    if !wrong.is_empty() {
        words(errors, path, name, wrong);
        return;
    }
    if name.contains('/') || standard(name) {
        return;
    }
    if !STANDARD_ELSEWHERE.contains(&name) {
        errors.push(Error::invalid(path, name, "must be a standard resource type or fully qualified"));
    }
    errors.push(Error::invalid(path, name, "must be a standard resource for containers"));
}

fn amount(errors: &mut Vec<Error>, path: &Path, name: &str, value: &Value) {
    let Some(q) = value.as_str().and_then(|s| Quantity::parse(s).ok()) else { return };
    if q.sign() < 0 {
        errors.push(Error::invalid(path, value.clone(), check::NEGATIVE));
    } else if extended(name) && !q.is_whole() {
        errors.push(Error::invalid(path, value.clone(), "must be an integer"));
    }
}

fn security(errors: &mut Vec<Error>, context: &Value, path: &Path) {
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(value) = context.get(field) {
            id(errors, &path.child(field), value);
        }
    }
    if at(context, "/allowPrivilegeEscalation").as_bool() == Some(false) && super::privileged(context) {
        errors.push(Error::invalid(
            path,
            context.clone(),
            "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
        ));
    }
}
