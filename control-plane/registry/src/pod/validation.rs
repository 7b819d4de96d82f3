//! What may be wrong with a pod spec, in a Pod and in a pod template, in the order and the words of Kubernetes.

mod container;
mod environment;
mod probes;
mod resources;
mod scheduling;
mod volumes;

pub use resources::amounts;
pub use scheduling::tolerations;
pub use volumes::volume_source;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use serde_json::Value;

use crate::check::{self, words};
use crate::value::{at, flag, items, present, text};

/// Values of `restartPolicy`.
pub const RESTART_POLICIES: [&str; 3] = ["Always", "OnFailure", "Never"];
const DNS_POLICIES: [&str; 4] = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];

/// Everything wrong with a pod spec at `path`.
pub fn pod_spec(spec: &Value, path: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    let volumes = volumes::volumes(&mut errors, &path.child("volumes"), items(spec, "/volumes"));
    container::containers(&mut errors, spec, path, &volumes);
    restart_policy(&mut errors, spec, path);
    check::one_of(&mut errors, &path.child("dnsPolicy"), text(spec, "/dnsPolicy"), &DNS_POLICIES, true);
    scheduling::node_selector_map(&mut errors, spec, path);
    security_context(&mut errors, spec, path);
    scheduling::affinity(&mut errors, spec, path);
    dns_config(&mut errors, spec, path);
    scheduling::readiness_gates(&mut errors, spec, path);
    scheduling::spread(&mut errors, spec, path);
    names(&mut errors, spec, path, &["serviceAccountName", "nodeName"]);
    deadline(&mut errors, spec, path);
    names(&mut errors, spec, path, &["hostname", "subdomain"]);
    scheduling::tolerations(&mut errors, &path.child("tolerations"), items(spec, "/tolerations"));
    host_aliases(&mut errors, spec, path);
    names(&mut errors, spec, path, &["priorityClassName", "runtimeClassName"]);
    errors
}

/// Errors of a container that is added to a pod, beside those of its kind. `names` are taken; its own is added.
pub fn added_container(
    errors: &mut Vec<Error>,
    spec: &Value,
    c: &Value,
    path: &Path,
    names: &mut Vec<String>,
) {
    let volumes: Vec<String> = items(spec, "/volumes").iter().map(|v| text(v, "/name").to_owned()).collect();
    container::container(errors, c, path, &volumes, names);
}

fn restart_policy(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    check::one_of(
        errors,
        &path.child("restartPolicy"),
        text(spec, "/restartPolicy"),
        &RESTART_POLICIES,
        true,
    );
}

fn id(errors: &mut Vec<Error>, path: &Path, value: &Value) {
    if let Some(n) = value.as_i64()
        && !(0..=i64::from(i32::MAX)).contains(&n)
    {
        errors.push(Error::invalid(path, n, "must be between 0 and 2147483647, inclusive"));
    }
}

fn security_context(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let (context, path) = (at(spec, "/securityContext"), path.child("securityContext"));
    if let Some(group) = context.get("fsGroup") {
        id(errors, &path.child("fsGroup"), group);
    }
    for field in ["runAsUser", "runAsGroup"] {
        if let Some(value) = context.get(field) {
            id(errors, &path.child(field), value);
        }
    }
    for (i, group) in items(context, "/supplementalGroups").iter().enumerate() {
        id(errors, &path.child("supplementalGroups").index(i), group);
    }
    let mut seen = Vec::new();
    for (i, sysctl) in items(context, "/sysctls").iter().enumerate() {
        let path = path.child("sysctls").index(i).child("name");
        match text(sysctl, "/name") {
            "" => errors.push(Error::required(&path, "")),
            name if !is_sysctl(name) => errors.push(Error::invalid(&path, name, "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$")),
            name if seen.contains(&name) => errors.push(Error::duplicate(&path, name)),
            name => seen.push(name),
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let fits = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let b = part.as_bytes();
            b.first().is_some_and(|c| fits(*c))
                && b.last().is_some_and(|c| fits(*c))
                && b.iter().all(|c| fits(*c) || matches!(c, b'-' | b'_'))
        })
}

/// Names of other things: service account, node, host name, subdomain, classes.
fn names(errors: &mut Vec<Error>, spec: &Value, path: &Path, fields: &[&'static str]) {
    for field in fields {
        let value = text(spec, &format!("/{field}"));
        if value.is_empty() {
            continue;
        }
        let wrong = match *field {
            "hostname" | "subdomain" => rules::dns1123_label(value),
            _ => rules::dns1123_subdomain(value),
        };
        words(errors, &path.child(*field), value, wrong);
    }
}

fn host_aliases(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    for (i, alias) in items(spec, "/hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        check::ip(errors, &path.child("ip"), text(alias, "/ip"));
        for (j, name) in items(alias, "/hostnames").iter().enumerate() {
            let name = name.as_str().unwrap_or_default();
            words(errors, &path.child("hostnames").index(j), name, rules::dns1123_subdomain(name));
        }
    }
}

fn dns_config(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    let (config, at_config) = (at(spec, "/dnsConfig"), path.child("dnsConfig"));
    let servers = items(config, "/nameservers");
    if text(spec, "/dnsPolicy") == "None" {
        if config.is_null() {
            errors.push(Error::required(&at_config, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            errors.push(Error::required(
                &at_config.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            ));
            return;
        }
    }
    if servers.len() > 3 {
        errors.push(Error::invalid(
            &at_config.child("nameservers"),
            servers.to_vec(),
            "must not have more than 3 nameservers",
        ));
    }
    for (i, server) in servers.iter().enumerate() {
        check::ip(errors, &at_config.child("nameservers").index(i), server.as_str().unwrap_or_default());
    }
    for (i, search) in items(config, "/searches").iter().enumerate() {
        let search = search.as_str().unwrap_or_default();
        let bare = search.strip_suffix('.').unwrap_or(search);
        words(errors, &at_config.child("searches").index(i), search, rules::dns1123_subdomain(bare));
    }
    for (i, option) in items(config, "/options").iter().enumerate() {
        if text(option, "/name").is_empty() {
            errors.push(Error::required(&at_config.child("options").index(i), "must not be empty"));
        }
    }
}

fn deadline(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    if let Some(n) = at(spec, "/activeDeadlineSeconds").as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&n)
    {
        errors.push(Error::invalid(
            &path.child("activeDeadlineSeconds"),
            n,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
}

/// Rules that only a Pod has, not a template: they come after those of its spec.
pub fn pod_only(errors: &mut Vec<Error>, spec: &Value, path: &Path) {
    for (list, containers) in
        [("initContainers", items(spec, "/initContainers")), ("containers", items(spec, "/containers"))]
    {
        for (i, c) in containers.iter().enumerate() {
            let image = text(c, "/image");
            if image.trim() != image {
                let path = path.child(list).index(i).child("image");
                errors.push(Error::invalid(&path, image, "must not have leading or trailing whitespace"));
            }
        }
    }
    if !items(spec, "/ephemeralContainers").is_empty() {
        errors.push(Error::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    for (i, gate) in items(spec, "/schedulingGates").iter().enumerate() {
        let name = text(gate, "/name");
        words(errors, &path.child("schedulingGates").index(i), name, rules::qualified_name(name));
    }
    let group = at(spec, "/schedulingGroup");
    if !group.is_null() {
        let (name, path) =
            (text(group, "/podGroupName"), path.child("schedulingGroup").child("podGroupName"));
        match name {
            "" => errors.push(Error::required(&path, "")),
            name => words(errors, &path, name, rules::dns1123_subdomain(name)),
        }
    }
    if present(spec, "/nodeName")
        && !text(spec, "/nodeName").is_empty()
        && !items(spec, "/schedulingGates").is_empty()
    {
        errors.push(Error::forbidden(
            &path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        ));
    }
}

/// Whether a container asks to be privileged.
fn privileged(context: &Value) -> bool {
    flag(context, "/privileged")
}
