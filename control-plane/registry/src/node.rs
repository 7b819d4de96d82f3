//! Node.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::{self, validation as rules};
use coracle_api::status::Status;
use coracle_apiserver::kubelet_proxy::{NodeEndpoint, ResolveNode};
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource, SubresourceRequest};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::options::RegistryOptions;
use crate::table::{self, or_none};
use crate::value::{flag, items, list, number, object, set, set_default, text};
use crate::{check, subresource};

/// The port of a node's API where its status does not say.
const KUBELET_PORT: u16 = 10250;

static COLUMNS: [Column; 10] = [
    table::NAME,
    table::string("Status", "The status of the node"),
    table::string("Roles", "The roles of the node"),
    table::AGE,
    table::string("Version", "Kubelet Version reported by the node."),
    table::wide(
        "Internal-IP",
        "List of addresses reachable to the node. Queried from cloud provider, if available. More info: https://kubernetes.io/docs/reference/node/node-status/#addresses",
    ),
    table::wide(
        "External-IP",
        "List of addresses reachable to the node. Queried from cloud provider, if available. More info: https://kubernetes.io/docs/reference/node/node-status/#addresses",
    ),
    table::wide(
        "OS-Image",
        "OS Image reported by the node from /etc/os-release (e.g. Debian GNU/Linux 7 (wheezy)).",
    ),
    table::wide(
        "Kernel-Version",
        "Kernel Version reported by the node from 'uname -r' (e.g. 3.16.0-0.bpo.4-amd64).",
    ),
    table::wide(
        "Container-Runtime",
        "ContainerRuntime Version reported by the node through runtime remote API (e.g. containerd://1.4.2).",
    ),
];

/// The resource.
pub fn resource(options: &RegistryOptions) -> ResourceDef {
    let verbs = ["create", "delete", "get", "patch", "update"];
    let proxy = subresource::on_node(options, Arc::new(ProxyResolver), "nodes/proxy");
    ResourceDef::new("", "v1", "Node", "nodes", Arc::new(Node))
        .cluster_scoped()
        .short_names(&["no"])
        .subresource(Subresource::handler("proxy", "NodeProxyOptions", &verbs, proxy))
        .subresource(Subresource::status("Node"))
}

/// Address and port of a node's API, from its status.
///
/// # Errors
/// 503 where the node has no address yet.
pub fn kubelet(node: &Value) -> Result<(String, u16), Status> {
    let addresses = items(node, "/status/addresses");
    let kinds = ["InternalIP", "Hostname", "InternalDNS", "ExternalIP", "ExternalDNS"];
    let found = kinds.iter().find_map(|kind| addresses.iter().find(|a| text(a, "/type") == *kind));
    let Some(host) = found.map(|a| text(a, "/address")).filter(|a| !a.is_empty()) else {
        let name = meta::name(node).unwrap_or_default();
        return Err(Status::service_unavailable(format!(
            "no preferred addresses found for node {name:?}; known addresses: []"
        )));
    };
    let port = u16::try_from(number(node, "/status/daemonEndpoints/kubeletEndpoint/Port")).unwrap_or(0);
    Ok((host.to_string(), if port == 0 { KUBELET_PORT } else { port }))
}

/// `nodes/proxy`: the rest of the path and the query go to the node as they are.
struct ProxyResolver;

#[async_trait::async_trait]
impl ResolveNode for ProxyResolver {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        let name = request.context.name.as_deref().unwrap_or_default();
        // `https:name:port` and `name:port` choose a port.
        let bare = name.strip_prefix("https:").unwrap_or(name);
        let (bare, port) = bare.split_once(':').unwrap_or((bare, ""));
        let node = subresource::existing(&request.objects, "", "nodes", None, bare).await?;
        let (host, own) = kubelet(&node)?;
        let port = match port.trim_end_matches(':') {
            "" => own,
            text => {
                text.parse().map_err(|_| Status::bad_request(format!("invalid node request {name:?}")))?
            }
        };
        let query = request.http.uri().query().unwrap_or_default().to_string();
        Ok(NodeEndpoint { host, port, path: format!("/{}", request.tail), query, plain: false })
    }
}

struct Node;

const INFO: [&str; 10] = [
    "architecture",
    "bootID",
    "containerRuntimeVersion",
    "kernelVersion",
    "kubeProxyVersion",
    "kubeletVersion",
    "machineID",
    "operatingSystem",
    "osImage",
    "systemUUID",
];

fn defaults(obj: &mut Value) {
    if let Some(spec) = object(obj, "spec") {
        let first = items(spec, "/podCIDRs").first().and_then(Value::as_str).unwrap_or_default().to_string();
        let single = text(spec, "/podCIDR").to_string();
        if !single.is_empty() && first.is_empty() {
            set(spec, "podCIDRs", vec![single]);
        } else if single.is_empty() && !first.is_empty() {
            set(spec, "podCIDR", first);
        }
    }
    let Some(status) = object(obj, "status") else { return };
    if let Some(endpoint) = object(status, "daemonEndpoints").and_then(|d| object(d, "kubeletEndpoint")) {
        set_default(endpoint, "Port", 0);
    }
    if let Some(info) = object(status, "nodeInfo") {
        for field in INFO {
            set_default(info, field, "");
        }
    }
}

#[async_trait::async_trait]
impl Strategy for Node {
    fn default(&self, obj: &mut Value) {
        defaults(obj);
    }

    /// A node is born not ready: the taint keeps pods away until the node controller sees it ready.
    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        const NOT_READY: &str = "node.kubernetes.io/not-ready";
        if let Some(taints) = object(obj, "spec").and_then(|s| list(s, "taints"))
            && !taints.iter().any(|t| text(t, "/key") == NOT_READY && text(t, "/effect") == "NoSchedule")
        {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
        Ok(())
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        taints(&mut errors, items(obj, "/spec/taints"));
        for (i, range) in items(obj, "/spec/podCIDRs").iter().enumerate() {
            let path = Path::new("spec").child("podCIDRs").index(i);
            check::cidr(&mut errors, &path, range.as_str().unwrap_or_default());
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        let path = Path::new("spec");
        let before = items(old, "/spec/podCIDRs");
        if !before.is_empty() && items(new, "/spec/podCIDRs") != before {
            errors.push(Error::forbidden(
                &path.child("podCIDRs"),
                "node updates may not change podCIDR except from \"\" to valid",
            ));
        }
        let id = text(old, "/spec/providerID");
        if !id.is_empty() && text(new, "/spec/providerID") != id {
            errors.push(Error::forbidden(
                &path.child("providerID"),
                "node updates may not change providerID except from \"\" to valid",
            ));
        }
        errors
    }

    fn validate_status_update(&self, new: &Value, _old: &Value) -> Vec<Error> {
        let mut seen = Vec::new();
        let mut errors = Vec::new();
        for (i, address) in items(new, "/status/addresses").iter().enumerate() {
            if seen.contains(&address) {
                let path = Path::new("status").child("addresses").index(i);
                errors.push(Error::duplicate(&path, address.clone()));
            }
            seen.push(address);
        }
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let info = |field: &str| text(obj, &format!("/status/nodeInfo/{field}")).to_string();
        let or_unknown =
            |value: String| -> Value { if value.is_empty() { "<unknown>".into() } else { value.into() } };
        vec![
            table::name(obj),
            status(obj).into(),
            roles(obj),
            table::age(obj, now),
            info("kubeletVersion").into(),
            address(obj, "InternalIP"),
            address(obj, "ExternalIP"),
            or_unknown(info("osImage")),
            or_unknown(info("kernelVersion")),
            or_unknown(info("containerRuntimeVersion")),
        ]
    }

    fn field(&self, obj: &Value, path: &str) -> Option<String> {
        (path == "spec.unschedulable").then(|| flag(obj, "/spec/unschedulable").to_string())
    }

    fn selectable_fields(&self) -> &[&'static str] {
        &["spec.unschedulable"]
    }
}

fn taints(errors: &mut Vec<Error>, taints: &[Value]) {
    let mut seen = Vec::new();
    for (i, taint) in taints.iter().enumerate() {
        // Kubernetes reports taints below metadata.
        let path = Path::new("metadata").child("taints").index(i);
        let (key, value, effect) = (text(taint, "/key"), text(taint, "/value"), text(taint, "/effect"));
        check::words(errors, &path.child("key"), key, rules::qualified_name(key));
        check::words(errors, &path.child("value"), value, rules::label_value(value));
        check::one_of(
            errors,
            &path.child("effect"),
            effect,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            true,
        );
        if seen.contains(&(key, effect)) {
            errors.push(Error::duplicate(&path, taint.clone()));
        }
        seen.push((key, effect));
    }
}

fn status(obj: &Value) -> String {
    let ready = items(obj, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let mut words = match ready {
        Some(c) if text(c, "/status") == "True" => "Ready".to_string(),
        Some(_) => "NotReady".to_string(),
        None => "Unknown".to_string(),
    };
    if flag(obj, "/spec/unschedulable") {
        words.push_str(",SchedulingDisabled");
    }
    words
}

fn roles(obj: &Value) -> Value {
    let mut roles: Vec<&str> = meta::labels(obj)
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" && !value.is_empty() => Some(value),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    or_none(&roles.join(","))
}

fn address(obj: &Value, kind: &str) -> Value {
    let found = items(obj, "/status/addresses").iter().find(|a| text(a, "/type") == kind);
    or_none(found.map_or("", |a| text(a, "/address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows() {
        let now = "2026-01-01T00:00:10Z".parse().unwrap();
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"node-role.kubernetes.io/worker": ""}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "127.0.1.1"}],
            "nodeInfo": {"kubeletVersion": "v1", "osImage": "os"}}});
        assert_eq!(
            Node.row(&node, now),
            [
                json!("n"),
                json!("Ready,SchedulingDisabled"),
                json!("worker"),
                json!("10s"),
                json!("v1"),
                json!("127.0.1.1"),
                json!("<none>"),
                json!("os"),
                json!("<unknown>"),
                json!("<unknown>")
            ]
        );
    }

    #[test]
    fn where_the_kubelet_listens() {
        let node = |port: i64| {
            json!({"status": {"addresses": [{"type": "Hostname", "address": "h"}, {"type": "InternalIP", "address": "127.0.1.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}})
        };
        assert_eq!(kubelet(&node(7)).unwrap(), ("127.0.1.1".to_string(), 7));
        assert_eq!(kubelet(&node(0)).unwrap(), ("127.0.1.1".to_string(), 10250));
        assert_eq!(kubelet(&json!({})).unwrap_err().code, 503);
    }
}
