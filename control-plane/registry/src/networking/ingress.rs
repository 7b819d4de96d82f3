//! Ingress.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, validation as rules};
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::value::{at, items, number, object, present, reset, text};
use crate::{check, table};

/// The class in the words of old.
pub const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const PATH_TYPES: [&str; 3] = ["Exact", "ImplementationSpecific", "Prefix"];
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

static COLUMNS: [Column; 6] = [
    table::NAME,
    table::string("Class", "The name of the IngressClass that serves it."),
    table::string("Hosts", "Hosts that incoming requests are matched against before the ingress rule."),
    table::string("Address", "Address of the load balancer, if there is one."),
    table::string("Ports", "Ports of TLS configurations that open."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(super::GROUP, "v1", "Ingress", "ingresses", Arc::new(Ingress))
        .short_names(&["ing"])
        .subresource(Subresource::status("Ingress"))
}

/// What Ingresses add to the server.
pub struct Ingress;

#[async_trait::async_trait]
impl Strategy for Ingress {
    fn default(&self, obj: &mut Value) {
        object(obj, "spec");
        if let Some(status) = object(obj, "status") {
            object(status, "loadBalancer");
        }
    }

    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({"loadBalancer": {}}));
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(obj, "/spec"), &Path::new("spec"));
        if meta::annotation(obj, CLASS_ANNOTATION).is_some() && present(obj, "/spec/ingressClassName") {
            let path = Path::new("annotations").child(CLASS_ANNOTATION);
            let class = meta::annotation(obj, CLASS_ANNOTATION).unwrap_or_default();
            let words = "can not be set when the class field is also set";
            errors.push(Error::invalid(&path, class, words));
        }
        errors
    }

    fn validate_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        spec(&mut errors, at(new, "/spec"), &Path::new("spec"));
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let path = Path::new("status").child("loadBalancer").child("ingress");
        for (i, ingress) in items(new, "/status/loadBalancer/ingress").iter().enumerate() {
            let ip = text(ingress, "/ip");
            if !ip.is_empty() {
                check::ip(&mut errors, &path.index(i).child("ip"), ip);
            }
        }
        errors
    }

    fn warnings(&self, obj: &Value) -> Vec<String> {
        match meta::annotation(obj, CLASS_ANNOTATION) {
            Some(_) => vec![format!(
                "annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead"
            )],
            None => Vec::new(),
        }
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let hosts: Vec<&str> =
            items(obj, "/spec/rules").iter().map(|r| text(r, "/host")).filter(|h| !h.is_empty()).collect();
        let addresses: Vec<&str> = items(obj, "/status/loadBalancer/ingress")
            .iter()
            .map(|i| if text(i, "/ip").is_empty() { text(i, "/hostname") } else { text(i, "/ip") })
            .filter(|a| !a.is_empty())
            .collect();
        let ports = if items(obj, "/spec/tls").is_empty() { "80" } else { "80, 443" };
        vec![
            table::name(obj),
            table::or_none(text(obj, "/spec/ingressClassName")),
            if hosts.is_empty() { "*".into() } else { hosts.join(",").into() },
            addresses.join(",").into(),
            ports.into(),
            table::age(obj, now),
        ]
    }
}

fn spec(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let rules = items(spec, "/rules");
    let default = at(spec, "/defaultBackend");
    if rules.is_empty() && default.is_null() {
        let words = "either `defaultBackend` or `rules` must be specified";
        errors.push(Error::invalid(path, Value::Null, words));
    }
    if !default.is_null() {
        backend(errors, default, &path.child("defaultBackend"));
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(i);
        host(errors, text(rule, "/host"), &path.child("host"), true);
        if !present(rule, "/http") {
            continue;
        }
        let path = path.child("http").child("paths");
        let paths = items(rule, "/http/paths");
        if paths.is_empty() {
            errors.push(Error::required(&path, ""));
        }
        for (i, p) in paths.iter().enumerate() {
            http_path(errors, p, &path.index(i));
        }
    }
    for (i, tls) in items(spec, "/tls").iter().enumerate() {
        let path = path.child("tls").index(i);
        for (i, name) in items(tls, "/hosts").iter().enumerate() {
            host(errors, name.as_str().unwrap_or_default(), &path.child("hosts").index(i), false);
        }
        let secret = text(tls, "/secretName");
        if !secret.is_empty() {
            check::words(errors, &path.child("secretName"), secret, rules::dns1123_subdomain(secret));
        }
    }
    let class = text(spec, "/ingressClassName");
    if !class.is_empty() {
        check::words(errors, &path.child("ingressClassName"), class, rules::dns1123_subdomain(class));
    }
}

fn host(errors: &mut Vec<Error>, host: &str, path: &Path, rule: bool) {
    if host.is_empty() {
        return;
    }
    if rule && host.parse::<std::net::IpAddr>().is_ok() {
        errors.push(Error::invalid(path, host, "must be a DNS name, not an IP address"));
    } else if host.contains('*') {
        let fits = host.strip_prefix("*.").is_some_and(|rest| rules::dns1123_subdomain(rest).is_empty());
        if !fits {
            errors.push(Error::invalid(path, host, WILDCARD));
        }
    } else {
        check::words(errors, path, host, rules::dns1123_subdomain(host));
    }
}

fn http_path(errors: &mut Vec<Error>, p: &Value, path: &Path) {
    let at_path = path.child("path");
    let given = text(p, "/path");
    match text(p, "/pathType") {
        "" => {
            let at_type = path.child("pathType");
            errors.push(Error::required(&at_type, "pathType must be specified"));
            return;
        }
        "Exact" | "Prefix" if !given.starts_with('/') => {
            errors.push(Error::invalid(&at_path, given, "must be an absolute path"));
        }
        "Exact" | "Prefix" => {
            for bad in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|b| given.contains(**b)) {
                errors.push(Error::invalid(&at_path, given, format!("must not contain '{bad}'")));
            }
            for bad in ["/..", "/."].iter().filter(|b| given.ends_with(**b)) {
                errors.push(Error::invalid(&at_path, given, format!("cannot end with '{bad}'")));
            }
        }
        "ImplementationSpecific" if !given.is_empty() && !given.starts_with('/') => {
            errors.push(Error::invalid(&at_path, given, "must be an absolute path"));
        }
        "ImplementationSpecific" => {}
        other => errors.push(Error::not_supported(&path.child("pathType"), other, &PATH_TYPES)),
    }
    backend(errors, at(p, "/backend"), &path.child("backend"));
}

fn backend(errors: &mut Vec<Error>, backend: &Value, path: &Path) {
    match (present(backend, "/service"), present(backend, "/resource")) {
        (true, true) => {
            errors.push(Error::invalid(path, "", "cannot set both resource and service backends"));
        }
        (false, false) => errors.push(Error::invalid(path, "", "resource or service backend is required")),
        (false, true) => {
            let path = path.child("resource");
            for field in ["kind", "name"] {
                if text(backend, &format!("/resource/{field}")).is_empty() {
                    errors.push(Error::required(&path.child(field), ""));
                }
            }
        }
        (true, false) => service(errors, at(backend, "/service"), &path.child("service")),
    }
}

fn service(errors: &mut Vec<Error>, service: &Value, path: &Path) {
    let name = text(service, "/name");
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    } else {
        check::words(errors, &path.child("name"), name, rules::dns1035_label(name));
    }
    let port = path.child("port");
    match (text(service, "/port/name"), number(service, "/port/number")) {
        ("", 0) => errors.push(Error::required(&port, "port name or number is required")),
        ("", n) => check::port(errors, &port.child("number"), n),
        (name, 0) => check::words(errors, &port.child("name"), name, check::port_name(name)),
        _ => errors.push(Error::invalid(path, "", "cannot set both port name & port number")),
    }
}
