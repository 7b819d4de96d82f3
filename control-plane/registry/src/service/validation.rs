//! What may be wrong with a Service, in the order and the words of Kubernetes.

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use super::{Kind, is_headless};
use crate::check::{self, words};
use crate::go_struct;
use crate::value::{at, entries, items, number, present, same, text};

/// Everything wrong with a Service.
pub fn service(obj: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
    let kind = text(spec, "/type");
    let list = items(spec, "/ports");
    if list.is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    typed(&mut errors, spec, &path);
    ports(&mut errors, list, &path.child("ports"), is_headless(spec));
    for (key, value) in entries(spec, "/selector") {
        words(&mut errors, &path.child("selector"), key, rules::label_key(key));
        let value = value.as_str().unwrap_or_default();
        words(&mut errors, &path.child("selector"), value, rules::label_value(value));
    }
    affinity(&mut errors, spec, &path);
    for (i, ip) in items(spec, "/externalIPs").iter().enumerate() {
        check::non_special_ip(
            &mut errors,
            &path.child("externalIPs").index(i),
            ip.as_str().unwrap_or_default(),
            &[],
        );
    }
    check::one_of(
        &mut errors,
        &path.child("type"),
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        true,
    );
    if kind == "ClusterIP" {
        for (i, port) in list.iter().enumerate() {
            if number(port, "/nodePort") != 0 {
                let path = path.child("ports").index(i).child("nodePort");
                errors.push(Error::forbidden(&path, "may not be used when `type` is 'ClusterIP'"));
            }
        }
    }
    duplicates(&mut errors, list, &path.child("ports"));
    source_ranges(&mut errors, spec, &path);
    policies(&mut errors, spec, &path);
    errors
}

/// Rules of one type.
fn typed(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    match Kind::of(spec) {
        Kind::LoadBalancer | Kind::NodePort if is_headless(spec) => {
            let words = format!("may not be set to 'None' for {} services", text(spec, "/type"));
            errors.push(Error::invalid(&path.child("clusterIPs").index(0), "None", words));
        }
        Kind::ExternalName => {
            for field in ["clusterIPs", "ipFamilies"] {
                if !items(spec, &format!("/{field}")).is_empty() {
                    errors.push(Error::forbidden(
                        &path.child(field),
                        "may not be set for ExternalName services",
                    ));
                }
            }
            if present(spec, "/ipFamilyPolicy") {
                errors.push(Error::forbidden(
                    &path.child("ipFamilyPolicy"),
                    "may not be set for ExternalName services",
                ));
            }
            let path = path.child("externalName");
            match text(spec, "/externalName").trim_end_matches('.') {
                "" => errors.push(Error::required(&path, "")),
                name => words(errors, &path, name, rules::dns1123_subdomain(name)),
            }
        }
        _ => {}
    }
}

fn ports(errors: &mut Vec<Error>, ports: &[Value], path: &Path, headless: bool) {
    let mut names = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(Error::required(&path.child("name"), ""));
            }
        } else {
            words(errors, &path.child("name"), name, rules::dns1123_label(name));
            if names.contains(&name) {
                errors.push(Error::duplicate(&path.child("name"), name));
            }
            names.push(name);
        }
        check::port(errors, &path.child("port"), number(port, "/port"));
        check::one_of(
            errors,
            &path.child("protocol"),
            text(port, "/protocol"),
            &["SCTP", "TCP", "UDP"],
            true,
        );
        let target = at(port, "/targetPort");
        if !(headless && target.is_null()) {
            check::port_or_name(errors, &path.child("targetPort"), target);
        }
        let protocol = text(port, "/appProtocol");
        if !protocol.is_empty() {
            words(errors, &path.child("appProtocol"), protocol, rules::qualified_name(protocol));
        }
    }
}

/// A pair of protocol and port may occur once; so may a node port with a protocol.
fn duplicates(errors: &mut Vec<Error>, ports: &[Value], path: &Path) {
    let (mut seen, mut nodes) = (Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let protocol = text(port, "/protocol");
        let node = (protocol, number(port, "/nodePort"));
        if node.1 != 0 {
            if nodes.contains(&node) {
                errors.push(Error::duplicate(&path.child("nodePort"), node.1));
            }
            nodes.push(node);
        }
        let key = (protocol, number(port, "/port"));
        if seen.contains(&key) {
            let shown = go_struct::shown(port, &go_struct::SERVICE_PORT);
            errors.push(Error::duplicate(&path, port.clone()).shown_as(shown));
        }
        seen.push(key);
    }
}

fn affinity(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let affinity = text(spec, "/sessionAffinity");
    check::one_of(errors, &path.child("sessionAffinity"), affinity, &["ClientIP", "None"], true);
    let (config, path) = (at(spec, "/sessionAffinityConfig"), path.child("sessionAffinityConfig"));
    match affinity {
        "ClientIP" => {
            let seconds = number(config, "/clientIP/timeoutSeconds");
            if !(1..=86400).contains(&seconds) {
                let path = path.child("clientIP").child("timeoutSeconds");
                errors.push(Error::invalid(&path, seconds, "must be greater than 0 and less than 86400"));
            }
        }
        "None" if !config.is_null() => {
            errors.push(Error::forbidden(&path, "must not be set when session affinity is None"));
        }
        _ => {}
    }
}

fn source_ranges(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let ranges = items(spec, "/loadBalancerSourceRanges");
    // Kubernetes writes the field's Go name here.
    let at_ranges = path.child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && Kind::of(spec) != Kind::LoadBalancer {
        errors.push(Error::forbidden(&at_ranges, "may only be used when `type` is 'LoadBalancer'"));
    }
    for (i, range) in ranges.iter().enumerate() {
        check::cidr(errors, &at_ranges.index(i), range.as_str().unwrap_or_default().trim());
    }
    if Kind::of(spec) != Kind::LoadBalancer {
        if present(spec, "/allocateLoadBalancerNodePorts") {
            errors.push(Error::forbidden(
                &path.child("allocateLoadBalancerNodePorts"),
                "may only be used when `type` is 'LoadBalancer'",
            ));
        }
        if present(spec, "/loadBalancerClass") {
            errors.push(Error::forbidden(
                &path.child("loadBalancerClass"),
                "may only be used when `type` is 'LoadBalancer'",
            ));
        }
    }
}

fn policies(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let external = text(spec, "/externalTrafficPolicy");
    let outside = matches!(Kind::of(spec), Kind::NodePort | Kind::LoadBalancer)
        || !items(spec, "/externalIPs").is_empty();
    if !external.is_empty() && !outside {
        errors.push(Error::invalid(
            &path.child("externalTrafficPolicy"),
            external,
            "may only be set for externally-accessible services",
        ));
    } else {
        check::one_of(errors, &path.child("externalTrafficPolicy"), external, &["Cluster", "Local"], false);
    }
    let internal = text(spec, "/internalTrafficPolicy");
    check::one_of(errors, &path.child("internalTrafficPolicy"), internal, &["Cluster", "Local"], false);
    let node_port = number(spec, "/healthCheckNodePort");
    if node_port != 0 && !(Kind::of(spec) == Kind::LoadBalancer && external == "Local") {
        errors.push(Error::invalid(
            &path.child("healthCheckNodePort"),
            node_port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
}

/// What may not change.
pub fn update(new: &Value, old: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    let path = Path::new("spec");
    let stays = |obj: &Value| !matches!(text(obj, "/spec/type"), "ExternalName" | "");
    let before = items(old, "/spec/clusterIPs").first();
    if stays(new) && stays(old) && before.is_some() {
        let after = items(new, "/spec/clusterIPs");
        if !same(&after.first().cloned().unwrap_or_default(), &before.cloned().unwrap_or_default()) {
            let path = path.child("clusterIPs").index(0);
            errors.push(Error::invalid(&path, after.to_vec(), "may not change once set"));
        }
    }
    errors.extend(service(new));
    errors
}
