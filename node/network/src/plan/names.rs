//! The names of a Service, as the specification of DNS-based service discovery for Kubernetes (1.1.0) has them.

use std::collections::{BTreeMap, BTreeSet};

use coracle_cri_api::network as feed;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::endpoints::{is_ready, slice_port};
use super::{cluster_ips, port_number};

/// Adds the names of one Service.
pub fn add(
    names: &mut Vec<feed::Name>,
    namespace: &str,
    name: &str,
    service: &Service,
    slices: &[&EndpointSlice],
    domain: &str,
) {
    let Some(spec) = &service.spec else { return };
    let own = format!("{name}.{namespace}.svc.{domain}");
    if spec.type_.as_deref() == Some("ExternalName") {
        let cname = spec.external_name.clone().unwrap_or_default();
        if !cname.is_empty() {
            names.push(feed::Name { name: own, cname, ..Default::default() });
        }
        return;
    }
    let addresses = cluster_ips(service);
    if !addresses.is_empty() {
        for port in spec.ports.iter().flatten() {
            let srv = port_number(port.port).map(|port| feed::Srv { port, target: own.clone() });
            push_srv(names, port.name.as_deref(), port.protocol.as_deref(), &own, srv.into_iter().collect());
        }
        names.push(feed::Name { name: own, addresses, reverse: true, ..Default::default() });
        return;
    }
    let not_ready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let members = members(slices, not_ready_too, &own);
    let all: BTreeSet<String> = members.values().flatten().cloned().collect();
    for port in spec.ports.iter().flatten() {
        let mut srv = BTreeSet::new();
        for slice in slices {
            let Some(number) = slice_port(slice, port) else { continue };
            for endpoint in published(slice, not_ready_too) {
                srv.extend(member_names(endpoint, &own).into_iter().map(|(target, _)| (target, number)));
            }
        }
        let srv = srv.into_iter().map(|(target, port)| feed::Srv { port, target }).collect();
        push_srv(names, port.name.as_deref(), port.protocol.as_deref(), &own, srv);
    }
    if !all.is_empty() {
        names.push(feed::Name { name: own, addresses: all.into_iter().collect(), ..Default::default() });
    }
    for (name, addresses) in members {
        let addresses = addresses.into_iter().collect();
        names.push(feed::Name { name, addresses, reverse: true, ..Default::default() });
    }
}

fn push_srv(
    names: &mut Vec<feed::Name>,
    port: Option<&str>,
    protocol: Option<&str>,
    service: &str,
    srv: Vec<feed::Srv>,
) {
    if let Some(port) = port.filter(|_| !srv.is_empty()) {
        let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
        names.push(feed::Name { name: format!("_{port}._{protocol}.{service}"), srv, ..Default::default() });
    }
}

fn published(slice: &EndpointSlice, not_ready_too: bool) -> impl Iterator<Item = &Endpoint> {
    slice.endpoints.iter().flatten().filter(move |e| not_ready_too || is_ready(e))
}

/// The members of a headless Service by their names.
fn members(
    slices: &[&EndpointSlice],
    not_ready_too: bool,
    service: &str,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut members: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for endpoint in slices.iter().flat_map(|slice| published(slice, not_ready_too)) {
        for (name, address) in member_names(endpoint, service) {
            members.entry(name).or_default().insert(address);
        }
    }
    members
}

/// `hostname.service` where the pod has a hostname of its own, else `10-244-1-5.service`.
fn member_names(endpoint: &Endpoint, service: &str) -> Vec<(String, String)> {
    let named = |address: &String| {
        let dashed = || address.replace(['.', ':'], "-");
        let host = endpoint.hostname.clone().filter(|h| !h.is_empty()).unwrap_or_else(dashed);
        (format!("{host}.{service}"), address.clone())
    };
    endpoint.addresses.iter().map(named).collect()
}
