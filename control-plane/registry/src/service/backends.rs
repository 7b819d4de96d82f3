//! The ready endpoints of a Service, for calls that the API server itself makes.

use coracle_api::status::Status;
use coracle_apiserver::Objects;
use serde_json::Value;

use crate::value::{flag, items, number, present, text};

/// Addresses with their ports of the ready endpoints behind one port of a Service; `port_name` is empty for a port without one.
/// Endpoints that somebody wrote by hand count where there are no slices.
pub async fn ready(
    objects: &Objects,
    namespace: &str,
    service: &str,
    port_name: &str,
) -> Result<Vec<(String, u16)>, Status> {
    let mut found = Vec::new();
    let port_of = |ports: &[Value]| {
        let port = ports.iter().find(|p| text(p, "/name") == port_name)?;
        u16::try_from(number(port, "/port")).ok()
    };
    for slice in objects.list("discovery.k8s.io", "endpointslices", Some(namespace)).await? {
        if text(&slice, "/metadata/labels/kubernetes.io~1service-name") != service {
            continue;
        }
        let Some(port) = port_of(items(&slice, "/ports")) else { continue };
        for endpoint in items(&slice, "/endpoints") {
            // Not to know is to be ready.
            if present(endpoint, "/conditions/ready") && !flag(endpoint, "/conditions/ready") {
                continue;
            }
            found.extend(
                items(endpoint, "/addresses").first().and_then(|a| Some((a.as_str()?.to_owned(), port))),
            );
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let endpoints = objects.get("", "endpoints", Some(namespace), service).await?.unwrap_or_default();
    for subset in items(&endpoints, "/subsets") {
        let Some(port) = port_of(items(subset, "/ports")) else { continue };
        found.extend(items(subset, "/addresses").iter().map(|a| (text(a, "/ip").to_owned(), port)));
    }
    Ok(found)
}
