//! What is allowed in a pod spec and probably not meant.

use serde_json::Value;

use crate::value::{at, items, number, present, text};

/// Warnings about a pod spec at `path`.
pub fn pod_spec(spec: &Value, path: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (i, c) in items(spec, "/topologySpreadConstraints").iter().enumerate() {
        if !present(c, "/labelSelector") {
            all.push(format!("{path}.topologySpreadConstraints[{i}].labelSelector: a null labelSelector results in matching no pod"));
        }
    }
    for list in ["initContainers", "containers"] {
        for (i, c) in items(spec, &format!("/{list}")).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            duplicate_env(&mut all, c, &path);
            duplicate_ports(&mut all, c, &path);
        }
    }
    if text(spec, "/dnsPolicy") == "None" && items(spec, "/dnsConfig/searches").len() > 32 {
        all.push(format!("{path}.dnsConfig.searches: Search Line limits were exceeded"));
    }
    all
}

/// A later variable hides an earlier one of the same name.
fn duplicate_env(all: &mut Vec<String>, container: &Value, path: &str) {
    let mut seen = Vec::new();
    for (i, env) in items(container, "/env").iter().enumerate() {
        let name = text(env, "/name");
        let refers = text(env, "/value").contains(&format!("$({name})"));
        if seen.contains(&name) && !refers {
            all.push(format!("{path}.env[{i}]: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
        seen.push(name);
    }
}

fn duplicate_ports(all: &mut Vec<String>, container: &Value, path: &str) {
    let ports = items(container, "/ports");
    for (i, port) in ports.iter().enumerate() {
        let key = |p: &Value| {
            (
                number(p, "/containerPort"),
                text(p, "/protocol").to_string(),
                number(p, "/hostPort"),
                at(p, "/hostIP").clone(),
            )
        };
        if let Some(j) = ports.iter().take(i).position(|p| key(p) == key(port)) {
            all.push(format!("{path}.ports[{i}]: duplicate port definition with {path}.ports[{j}]"));
        }
    }
}
