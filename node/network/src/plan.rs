//! Pure: Services and EndpointSlices in, the table of listeners and names out.

use std::collections::{BTreeMap, BTreeSet};

use coracle_cri_api::network as feed;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// The label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What does not come from the API.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where NodePorts listen.
    pub node_ip: String,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
}

/// Builds the whole table. The order of its parts depends only on its input, so equal input gives an equal table.
pub fn table<'a>(
    services: impl Iterator<Item = &'a Service>,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    settings: &Settings,
) -> feed::Table {
    let by_service = group(slices);
    let mut ordered: BTreeMap<(String, String), &Service> = BTreeMap::new();
    for service in services {
        if let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) {
            ordered.insert((namespace.clone(), name.clone()), service);
        }
    }
    let mut table = feed::Table::default();
    for ((namespace, name), service) in ordered {
        let key = (namespace, name);
        let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
        add(&mut table, &key, service, slices, settings);
    }
    table
}

fn group<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> BTreeMap<(String, String), Vec<&'a EndpointSlice>> {
    let mut groups: BTreeMap<(String, String), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let service = slice.metadata.labels.as_ref().and_then(|l| l.get(SERVICE_NAME_LABEL));
        if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service) {
            groups.entry((namespace.clone(), service.clone())).or_default().push(slice);
        }
    }
    for slices in groups.values_mut() {
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    }
    groups
}

fn add(
    table: &mut feed::Table,
    (namespace, name): &(String, String),
    service: &Service,
    slices: &[&EndpointSlice],
    settings: &Settings,
) {
    let Some(spec) = &service.spec else { return };
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return;
    }
    let addresses = cluster_ips(service);
    let mut entry = feed::Service { name: format!("{namespace}/{name}"), ..Default::default() };
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let timeout = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        entry.client_ip_affinity = true;
        entry.affinity_seconds =
            timeout.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800);
    }
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
        let endpoints = endpoints(port, slices, spec.publish_not_ready_addresses.unwrap_or(false));
        let listener = |address: &str, port_number: u32| feed::Listener {
            address: address.to_owned(),
            port: port_number,
            protocol: protocol.into(),
            endpoints: endpoints.clone(),
            port_name: port.name.clone().unwrap_or_default(),
        };
        if let Some(number) = port_number(port.port) {
            entry.listeners.extend(addresses.iter().map(|a| listener(a, number)));
        }
        if let Some(number) = port.node_port.and_then(port_number)
            && matches!(kind, "NodePort" | "LoadBalancer")
        {
            entry.listeners.push(listener(&settings.node_ip, number));
        }
    }
    let headless = addresses.is_empty();
    let named = if headless { ready_addresses(slices) } else { addresses };
    if !named.is_empty() {
        for form in forms(&format!("{name}.{namespace}"), &settings.cluster_domain) {
            table.names.push(feed::Name { name: form, addresses: named.clone() });
        }
    }
    if headless {
        add_members(table, namespace, name, slices, settings);
    }
    if !entry.listeners.is_empty() {
        table.services.push(entry);
    }
}

/// `a.b`, `a.b.svc` and `a.b.svc.<domain>`: what a resolver's search list would make of them.
fn forms(short: &str, domain: &str) -> [String; 3] {
    [short.to_owned(), format!("{short}.svc"), format!("{short}.svc.{domain}")]
}

fn add_members(
    table: &mut feed::Table,
    namespace: &str,
    name: &str,
    slices: &[&EndpointSlice],
    settings: &Settings,
) {
    let mut members: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for endpoint in slices.iter().flat_map(|s| s.endpoints.iter().flatten()).filter(|e| is_ready(e)) {
        if let Some(hostname) = &endpoint.hostname {
            members.entry(hostname).or_default().extend(endpoint.addresses.iter().cloned());
        }
    }
    for (hostname, addresses) in members {
        for form in forms(&format!("{hostname}.{name}.{namespace}"), &settings.cluster_domain) {
            table.names.push(feed::Name { name: form, addresses: addresses.iter().cloned().collect() });
        }
    }
}

fn cluster_ips(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let unique: BTreeSet<&String> = all.filter(|a| !a.is_empty() && *a != "None").collect();
    unique.into_iter().cloned().collect()
}

fn protocol(name: Option<&str>) -> Option<feed::Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(feed::Protocol::Tcp),
        "UDP" => Some(feed::Protocol::Udp),
        _ => None,
    }
}

fn port_number(port: i32) -> Option<u32> {
    u16::try_from(port).ok().filter(|p| *p > 0).map(u32::from)
}

/// The API's rule: an absent `ready` means ready.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn ready_addresses(slices: &[&EndpointSlice]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
    let unique: BTreeSet<&String> =
        endpoints.filter(|e| is_ready(e)).flat_map(|e| e.addresses.iter()).collect();
    unique.into_iter().cloned().collect()
}

/// Ready endpoints of one Service port: slices name ports as the Service does. When none is ready, those that
/// still serve while they terminate are used, as kube-proxy does.
fn endpoints(port: &ServicePort, slices: &[&EndpointSlice], not_ready_too: bool) -> Vec<feed::Endpoint> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let mut ready = BTreeSet::new();
    let mut draining = BTreeSet::new();
    for slice in slices {
        let matching = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or_default() == name
                && p.protocol.as_deref().unwrap_or("TCP") == protocol
        });
        let Some(number) = matching.and_then(|p| p.port).and_then(port_number) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let conditions = endpoint.conditions.as_ref();
            let set = if is_ready(endpoint) || not_ready_too {
                &mut ready
            } else if conditions.is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true)) {
                &mut draining
            } else {
                continue;
            };
            set.extend(endpoint.addresses.iter().map(|a| (a.clone(), number)));
        }
    }
    let chosen = if ready.is_empty() { draining } else { ready };
    chosen.into_iter().map(|(address, port)| feed::Endpoint { address, port }).collect()
}

#[cfg(test)]
mod tests;
