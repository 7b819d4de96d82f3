//! The downward API: fields of the pod and resources of its containers, as text.

use std::collections::BTreeMap;

use coracle_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::tokens::Issued;

/// What the pod's own fields do not say.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The node's address.
    pub host_ip: String,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// Millicores that a container without a limit may use.
    pub node_cpu_milli: i64,
    /// Bytes that a container without a limit may use.
    pub node_memory: i64,
    /// Tokens of its service account, for its volumes.
    pub tokens: Issued,
}

/// The value of a `fieldRef`.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let values = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(unsupported(path)),
        };
        return Ok(values.as_ref().and_then(|v| v.get(key)).cloned().unwrap_or_default());
    }
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => Some(quoted(meta.labels.as_ref())),
        "metadata.annotations" => Some(quoted(meta.annotations.as_ref())),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
        "status.hostIP" | "status.hostIPs" => Some(facts.host_ip.clone()),
        "status.podIP" => facts.pod_ips.first().cloned(),
        "status.podIPs" => Some(facts.pod_ips.join(",")),
        _ => return Err(unsupported(path)),
    };
    Ok(value.unwrap_or_default())
}

fn unsupported(path: &str) -> String {
    format!("unsupported fieldPath: {path}")
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="value"` lines, sorted.
fn quoted(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The value of a `resourceFieldRef`; `container` is meant unless the reference names another.
pub fn resource(
    pod: &Pod,
    container: &Container,
    reference: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let named = reference.container_name.as_deref().filter(|n| !n.is_empty());
    let container = match named {
        None => container,
        Some(name) => spec
            .into_iter()
            .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
            .find(|c| c.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
    };
    let (list, name) = reference
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported resource: {}", reference.resource))?;
    let resources = container.resources.as_ref();
    let amounts = match list {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("unsupported resource: {}", reference.resource)),
    };
    let amount = amounts.and_then(|a| a.get(name));
    let parse = |text: &str| Quantity::parse(text).map_err(|e| format!("quantity {text:?}: {e}"));
    let divisor = reference.divisor.as_ref().map(|d| d.0.as_str()).filter(|d| !d.is_empty() && *d != "0");
    if name == "cpu" {
        let milli = match amount {
            Some(amount) => parse(&amount.0)?.milli_value(),
            None if list == "limits" => facts.node_cpu_milli,
            None => 0,
        };
        let by = divisor.map(parse).transpose()?.map_or(1000, |d| d.milli_value()).max(1);
        return Ok(ceil(milli, by).to_string());
    }
    let bytes = match amount {
        Some(amount) => parse(&amount.0)?.value(),
        None if list == "limits" && name == "memory" => facts.node_memory,
        None => 0,
    };
    let by = divisor.map(parse).transpose()?.map_or(1, |d| d.value()).max(1);
    Ok(ceil(bytes, by).to_string())
}

fn ceil(value: i64, by: i64) -> i64 {
    let value = value.max(0);
    value / by + i64::from(value % by != 0)
}
