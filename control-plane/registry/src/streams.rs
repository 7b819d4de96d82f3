//! Where `pods/exec`, `attach`, `portforward`, `pods/proxy` and `services/proxy` go: to the pod's node, or to an address.

use std::sync::Arc;

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::kubelet_proxy::{NodeEndpoint, ResolveNode};
use coracle_apiserver::{Objects, Subresource, SubresourceRequest};
use serde_json::Value;

use crate::node;
use crate::options::RegistryOptions;
use crate::pod::logs::{container, encode, pairs};
use crate::service::backends;
use crate::subresource::{existing, on_node};
use crate::value::{items, number, text};

/// Verbs of a proxy.
const PROXY: [&str; 5] = ["create", "delete", "get", "patch", "update"];

/// The streams of a pod.
pub fn of_pod(options: &RegistryOptions) -> [Subresource; 4] {
    let stream = |name: &'static str, kind: &str, resolver: Arc<dyn ResolveNode>| {
        Subresource::handler(name, kind, &["create", "get"], on_node(options, resolver, name))
    };
    let proxy = on_node(options, Arc::new(PodProxy), "pods/proxy");
    [
        stream("attach", "PodAttachOptions", Arc::new(OnContainer { call: "attach" })),
        stream("exec", "PodExecOptions", Arc::new(OnContainer { call: "exec" })),
        stream("portforward", "PodPortForwardOptions", Arc::new(PortForward)),
        Subresource::handler("proxy", "PodProxyOptions", &PROXY, proxy),
    ]
}

/// `services/proxy`.
pub fn of_service(options: &RegistryOptions) -> Subresource {
    let proxy = on_node(options, Arc::new(ServiceProxy), "services/proxy");
    Subresource::handler("proxy", "ServiceProxyOptions", &PROXY, proxy)
}

/// The API of the node that a pod runs on.
async fn node_of(objects: &Objects, pod: &Value, name: &str) -> Result<(String, u16), Status> {
    let host = text(pod, "/spec/nodeName");
    if host.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    match objects.get("", "nodes", None, host).await? {
        Some(node) => node::kubelet(&node),
        None => Err(Status::not_found(&GroupResource::new("", "nodes"), host)),
    }
}

/// Exec and attach: which container, and the options by the names of the node's API.
struct OnContainer {
    call: &'static str,
}

#[async_trait::async_trait]
impl ResolveNode for OnContainer {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        let cx = &request.context;
        let (name, namespace) = (cx.name.as_deref().unwrap_or_default(), cx.namespace.as_deref());
        let query = pairs(request.http.uri().query().unwrap_or_default());
        if self.call == "exec" && !query.iter().any(|(k, v)| k == "command" && !v.is_empty()) {
            return Err(Status::bad_request("you must specify at least one command for the container"));
        }
        let pod = existing(&request.objects, "", "pods", namespace, name).await?;
        let asked = query.iter().find(|(k, _)| k == "container").map_or("", |(_, v)| v.as_str());
        let container = container(&pod, name, asked)?;
        if matches!(text(&pod, "/status/phase"), "Succeeded" | "Failed") {
            let phase = text(&pod, "/status/phase");
            return Err(Status::bad_request(format!(
                "cannot {} into a container in a completed pod; current phase is {phase}",
                self.call
            )));
        }
        let (host, port) = node_of(&request.objects, &pod, name).await?;
        let path = format!("/{}/{}/{name}/{container}", self.call, namespace.unwrap_or_default());
        Ok(NodeEndpoint { host, port, path, query: node_query(&query), plain: false })
    }
}

/// The options of a stream as the node's API names them.
fn node_query(query: &[(String, String)]) -> String {
    let on = |value: &str| matches!(value, "true" | "1");
    let kept = query.iter().filter_map(|(key, value)| match key.as_str() {
        "stdin" if on(value) => Some("input=1".to_owned()),
        "stdout" if on(value) => Some("output=1".to_owned()),
        "stderr" if on(value) => Some("error=1".to_owned()),
        "tty" if on(value) => Some("tty=1".to_owned()),
        "command" => Some(format!("command={}", encode(value))),
        _ => None,
    });
    kept.collect::<Vec<_>>().join("&")
}

struct PortForward;

#[async_trait::async_trait]
impl ResolveNode for PortForward {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        let cx = &request.context;
        let (name, namespace) = (cx.name.as_deref().unwrap_or_default(), cx.namespace.as_deref());
        let pod = existing(&request.objects, "", "pods", namespace, name).await?;
        let (host, port) = node_of(&request.objects, &pod, name).await?;
        let query = pairs(request.http.uri().query().unwrap_or_default());
        let ports = query.iter().filter(|(k, _)| k == "ports" || k == "port");
        let ports: Vec<_> = ports.map(|(_, v)| format!("port={}", encode(v))).collect();
        let path = format!("/portForward/{}/{name}", namespace.unwrap_or_default());
        Ok(NodeEndpoint { host, port, path, query: ports.join("&"), plain: false })
    }
}

/// `[scheme:]name[:port]`, as proxies name their objects.
fn parts(name: &str) -> Result<(&str, &str), Status> {
    let pieces: Vec<&str> = name.split(':').collect();
    match pieces.as_slice() {
        [name] => Ok((name, "")),
        [name, port] => Ok((name, port)),
        ["http" | "", name, port] => Ok((name, port)),
        ["https", ..] => {
            Err(Status::new(501, "NotImplemented", "a proxy to HTTPS endpoints is not served by this server"))
        }
        _ => Err(Status::bad_request(format!("invalid proxy request {name:?}"))),
    }
}

fn endpoint(request: &SubresourceRequest<()>, host: String, port: u16) -> NodeEndpoint {
    let query = request.http.uri().query().unwrap_or_default().to_owned();
    NodeEndpoint { host, port, path: format!("/{}", request.tail), query, plain: true }
}

struct PodProxy;

#[async_trait::async_trait]
impl ResolveNode for PodProxy {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        let cx = &request.context;
        let (name, asked) = parts(cx.name.as_deref().unwrap_or_default())?;
        let pod = existing(&request.objects, "", "pods", cx.namespace.as_deref(), name).await?;
        let host = text(&pod, "/status/podIP").to_owned();
        if host.is_empty() {
            return Err(Status::bad_request(format!("address not allowed: pod {name} has no address yet")));
        }
        let ports = items(&pod, "/spec/containers").iter().flat_map(|c| items(c, "/ports"));
        let named = |port: &&Value| asked.is_empty() || text(port, "/name") == asked;
        let declared = || ports.clone().find(named).map(|p| number(p, "/containerPort"));
        let port = asked.parse().ok().or_else(|| u16::try_from(declared()?).ok());
        let port = port.or_else(|| asked.is_empty().then_some(80)).filter(|p| *p > 0);
        let port = port.ok_or_else(|| Status::bad_request(format!("no port {asked:?} in pod {name:?}")))?;
        Ok(endpoint(request, host, port))
    }
}

struct ServiceProxy;

#[async_trait::async_trait]
impl ResolveNode for ServiceProxy {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        let cx = &request.context;
        let (name, asked) = parts(cx.name.as_deref().unwrap_or_default())?;
        let service = existing(&request.objects, "", "services", cx.namespace.as_deref(), name).await?;
        let ports = items(&service, "/spec/ports");
        let port = match asked {
            "" => ports.first(),
            _ => ports.iter().find(|p| {
                text(p, "/name") == asked || asked.parse::<i64>().is_ok_and(|n| number(p, "/port") == n)
            }),
        };
        let none = || Status::service_unavailable(format!("no endpoints available for service {name:?}"));
        let port = port.ok_or_else(none)?;
        let mut ready = backends::ready(
            &request.objects,
            cx.namespace.as_deref().unwrap_or_default(),
            name,
            text(port, "/name"),
        )
        .await?;
        // Any will do; the clock spreads calls well enough.
        let turn = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() as usize;
        let chosen = turn.checked_rem(ready.len()).map(|at| ready.swap_remove(at));
        let (host, port) = chosen.ok_or_else(none)?;
        Ok(endpoint(request, host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_by_the_nodes_names() {
        let query = pairs(
            "command=sh&command=-c&command=echo%20a%26b&stdin=true&stdout=true&stderr=false&container=c",
        );
        assert_eq!(node_query(&query), "command=sh&command=-c&command=echo%20a%26b&input=1&output=1");
    }

    #[test]
    fn names_of_proxies() {
        assert_eq!(parts("a").unwrap(), ("a", ""));
        assert_eq!(parts("a:80").unwrap(), ("a", "80"));
        assert_eq!(parts("http:a:web").unwrap(), ("a", "web"));
        assert_eq!(parts("https:a:web").unwrap_err().code, 501);
    }
}
