//! `pods/log`: which node holds the log of a container, and what to ask it.

use coracle_api::field::{Error, Path};
use coracle_api::meta::{GroupResource, Gvk};
use coracle_api::status::Status;
use coracle_apiserver::SubresourceRequest;
use coracle_apiserver::kubelet_proxy::{NodeEndpoint, ResolveNode};
use serde_json::Value;

use crate::node;
use crate::subresource::existing;
use crate::value::{items, text};

/// Options that the node's API knows, by the same names.
const OPTIONS: [&str; 8] =
    ["follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"];

/// Finds the node of a pod.
pub struct LogResolver;

#[async_trait::async_trait]
impl ResolveNode for LogResolver {
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status> {
        let cx = &request.context;
        let (name, namespace) = (cx.name.as_deref().unwrap_or_default(), cx.namespace.as_deref());
        let query = pairs(request.http.uri().query().unwrap_or_default());
        check(&query)?;
        let pod = existing(&request.objects, "", "pods", namespace, name).await?;
        let asked = query.iter().find(|(k, _)| k == "container").map_or("", |(_, v)| v.as_str());
        let container = container(&pod, name, asked)?;
        let host = text(&pod, "/spec/nodeName");
        if host.is_empty() {
            return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
        }
        let Some(node) = request.objects.get("", "nodes", None, host).await? else {
            // Kubernetes names the pods resource here.
            return Err(Status::not_found(&GroupResource::new("", "pods"), host));
        };
        let (host, port) = node::kubelet(&node)?;
        let kept: Vec<String> = query
            .iter()
            .filter(|(k, _)| OPTIONS.contains(&k.as_str()))
            .map(|(k, v)| format!("{k}={}", encode(v)))
            .collect();
        let path = format!("/containerLogs/{}/{name}/{container}", namespace.unwrap_or_default());
        Ok(NodeEndpoint { host, port, path, query: kept.join("&"), plain: false })
    }
}

pub(crate) fn pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let hex: Vec<u8> = bytes.by_ref().take(2).collect();
                let code = std::str::from_utf8(&hex).ok().and_then(|h| u8::from_str_radix(h, 16).ok());
                out.push(code.unwrap_or(b'?'));
            }
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(crate) fn encode(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

fn check(query: &[(String, String)]) -> Result<(), Status> {
    let mut errors = Vec::new();
    for (key, least, words) in [
        ("sinceSeconds", 1, "must be greater than 0"),
        ("tailLines", 0, "must be greater than or equal to 0"),
        ("limitBytes", 1, "must be greater than 0"),
    ] {
        let Some((_, value)) = query.iter().find(|(k, _)| k == key) else { continue };
        match value.parse::<i64>() {
            Ok(n) if n < least => errors.push(Error::invalid(&Path::new(key), n, words)),
            Ok(_) => {}
            Err(_) => {
                return Err(Status::bad_request(format!(
                    "strconv.ParseInt: parsing {value:?}: invalid syntax"
                )));
            }
        }
    }
    let has = |key: &str| query.iter().any(|(k, _)| k == key);
    if has("sinceSeconds") && has("sinceTime") {
        errors.push(Error::forbidden(
            &Path::default(),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid(&Gvk::new("", "v1", "PodLogOptions"), "", errors))
    }
}

/// The container whose log is wanted: the one asked for, or the only one.
pub(crate) fn container(pod: &Value, name: &str, asked: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<&str> { items(pod, list).iter().map(|c| text(c, "/name")).collect() };
    let (main, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let ephemeral = names("/spec/ephemeralContainers");
    if asked.is_empty() {
        if let ([only], true, true) = (main.as_slice(), init.is_empty(), ephemeral.is_empty()) {
            return Ok((*only).to_string());
        }
        if main.len() == 1 && main.first().is_some_and(|n| !n.is_empty()) {
            return Ok(main.concat());
        }
        let mut words =
            format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
        if !init.is_empty() {
            words.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
        }
        return Err(Status::bad_request(words));
    }
    if main.iter().chain(&init).chain(&ephemeral).any(|c| *c == asked) {
        return Ok(asked.to_string());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn which_container() {
        let one = json!({"spec": {"containers": [{"name": "a"}]}});
        let two = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        let words = |pod: &Value, asked: &str| container(pod, "p", asked).unwrap_or_else(|e| e.message);
        assert_eq!(words(&one, ""), "a");
        assert_eq!(words(&two, "i"), "i");
        assert_eq!(words(&two, "x"), "container x is not valid for pod p");
        assert_eq!(
            words(&two, ""),
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
    }

    #[test]
    fn options() {
        let check = |q: &str| super::check(&pairs(q)).map_err(|e| e.message);
        assert_eq!(check("tailLines=10&follow=true"), Ok(()));
        assert_eq!(check("tailLines=x"), Err("strconv.ParseInt: parsing \"x\": invalid syntax".into()));
        assert!(check("tailLines=-1").is_err());
        assert!(check("sinceSeconds=1&sinceTime=2020-01-01T00%3A00%3A00Z").is_err());
        assert_eq!(pairs("a=b%20c+d"), [("a".into(), "b c d".into())]);
        assert_eq!(encode("a b:"), "a%20b%3A");
    }
}
