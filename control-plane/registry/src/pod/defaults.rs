//! What Kubernetes fills in of a pod spec, in a Pod and in a pod template.

use serde_json::{Value, json};

use crate::value::{at, entries, flag, items_mut, object, set, set_default, set_default_number, text};

/// Where the spec is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In a Pod.
    Pod,
    /// In a template of a Deployment or the like, which leaves some defaults to the Pod.
    Template,
}

/// Fills in a pod spec.
pub fn pod_spec(spec: &mut Value, place: Place) {
    set_default(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "restartPolicy", "Always");
    set_default(spec, "schedulerName", "default-scheduler");
    object(spec, "securityContext");
    // Holds for a pod spec anywhere: negative means "at once, but not forced", which Kubernetes writes as 1.
    if at(spec, "/terminationGracePeriodSeconds").as_i64().is_some_and(|s| s < 0) && place == Place::Pod {
        set(spec, "terminationGracePeriodSeconds", 1);
    }
    set_default(spec, "terminationGracePeriodSeconds", 30);
    if place == Place::Pod {
        set_default(spec, "enableServiceLinks", true);
    }
    mirror_account(spec);
    let host_network = flag(spec, "/hostNetwork");
    for key in ["containers", "initContainers", "ephemeralContainers"] {
        for c in items_mut(spec, key) {
            container(c, place);
            if host_network && key != "ephemeralContainers" {
                host_ports(c);
            }
        }
    }
    for v in items_mut(spec, "volumes") {
        volume(v);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are shown.
fn mirror_account(spec: &mut Value) {
    let name = match text(spec, "/serviceAccountName") {
        "" => text(spec, "/serviceAccount"),
        name => name,
    };
    if !name.is_empty() {
        let name = name.to_string();
        set(spec, "serviceAccountName", name.as_str());
        set(spec, "serviceAccount", name);
    }
}

fn host_ports(container: &mut Value) {
    for port in items_mut(container, "ports") {
        let number = at(port, "/containerPort").as_i64().unwrap_or_default();
        if number != 0 {
            set_default_number(port, "hostPort", number);
        }
    }
}

fn container(c: &mut Value, place: Place) {
    set_default(c, "terminationMessagePath", "/dev/termination-log");
    set_default(c, "terminationMessagePolicy", "File");
    let policy = if is_latest(text(c, "/image")) { "Always" } else { "IfNotPresent" };
    set_default(c, "imagePullPolicy", policy);
    for port in items_mut(c, "ports") {
        set_default(port, "protocol", "TCP");
    }
    for env in items_mut(c, "env") {
        if let Some(source) = env.get_mut("valueFrom").and_then(|v| v.get_mut("fieldRef")) {
            set_default(source, "apiVersion", "v1");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(p) = c.get_mut(name).filter(|p| p.is_object()) {
            probe(p);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(http) =
            c.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).and_then(|h| h.get_mut("httpGet"))
        {
            http_get(http);
        }
    }
    if let Some(resources) = object(c, "resources")
        && place == Place::Pod
    {
        requests_from_limits(resources);
    }
}

/// A limit without a request is also the request.
fn requests_from_limits(resources: &mut Value) {
    let limits: Vec<(String, Value)> =
        entries(resources, "/limits").map(|(k, v)| (k.clone(), v.clone())).collect();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = object(resources, "requests") {
        for (name, value) in limits {
            set_default(requests, &name, value);
        }
    }
}

/// Whether an image reference has no tag (and no digest), or the tag `latest`.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

fn http_get(http: &mut Value) {
    set_default(http, "path", "/");
    set_default(http, "scheme", "HTTP");
}

fn probe(p: &mut Value) {
    if let Some(http) = p.get_mut("httpGet").filter(|h| h.is_object()) {
        http_get(http);
    }
    if let Some(grpc) = p.get_mut("grpc").filter(|h| h.is_object()) {
        set_default(grpc, "service", "");
    }
    for (key, default) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        set_default_number(p, key, default);
    }
}

fn volume(v: &mut Value) {
    const MODE: i64 = 0o644;
    let sources = v.as_object().map_or(0, |m| m.iter().filter(|(k, v)| *k != "name" && !v.is_null()).count());
    if sources == 0 {
        set(v, "emptyDir", json!({}));
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(s) = v.get_mut(source).filter(|s| s.is_object()) {
            set_default(s, "defaultMode", MODE);
        }
    }
    if let Some(s) = v.get_mut("hostPath").filter(|s| s.is_object()) {
        set_default(s, "type", "");
    }
    if let Some(s) = v.get_mut("downwardAPI") {
        field_refs(s);
    }
    if let Some(s) = v.get_mut("projected") {
        for source in items_mut(s, "sources") {
            if let Some(d) = source.get_mut("downwardAPI") {
                field_refs(d);
            }
            if let Some(t) = source.get_mut("serviceAccountToken").filter(|t| t.is_object()) {
                set_default(t, "expirationSeconds", 3600);
            }
        }
    }
    if let Some(template) = v.get_mut("ephemeral").and_then(|e| e.get_mut("volumeClaimTemplate")) {
        object(template, "metadata");
        if let Some(spec) = object(template, "spec") {
            set_default(spec, "volumeMode", "Filesystem");
        }
    }
}

fn field_refs(source: &mut Value) {
    for item in items_mut(source, "items") {
        if let Some(reference) = item.get_mut("fieldRef").filter(|r| r.is_object()) {
            set_default(reference, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images() {
        for (image, latest) in [
            ("img", true),
            ("img:latest", true),
            ("img:v1", false),
            ("host:5000/img", true),
            ("host:5000/img:v1", false),
            ("img@sha256:aa", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
