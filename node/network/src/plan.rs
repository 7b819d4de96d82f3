//! Pure: what the API says of Services, endpoints, pods and policies in, the table for the runtime out.

mod endpoints;
mod names;
mod policy;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use coracle_cri_api::network as feed;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;

pub use endpoints::Locality;

/// The label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// How long a client keeps its endpoint where the Service does not say, in seconds.
const AFFINITY_SECONDS: u32 = 10_800;

/// What does not come from the API.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node_name: String,
    /// Where NodePorts listen.
    pub node_ip: String,
    /// Such as `cluster.local`.
    pub cluster_domain: String,
    /// Where DNS questions are answered; `None`: nowhere.
    pub cluster_dns: Option<SocketAddr>,
    /// Who is asked for names of other domains.
    pub upstreams: Vec<SocketAddr>,
    /// The node leads connections to Services by itself: the runtime opens no listener.
    pub resolve_only: bool,
}

/// What comes from the API.
#[derive(Default)]
pub struct Objects<'a> {
    pub services: Vec<&'a Service>,
    pub slices: Vec<&'a EndpointSlice>,
    pub pods: Vec<&'a Pod>,
    pub namespaces: Vec<&'a Namespace>,
    pub policies: Vec<&'a NetworkPolicy>,
}

/// Builds the whole table. The order of its parts depends only on its input, so equal input gives an equal table.
pub fn table(objects: &Objects<'_>, settings: &Settings) -> feed::Table {
    let by_service = group(&objects.slices);
    let mut ordered: BTreeMap<(String, String), &Service> = BTreeMap::new();
    for service in &objects.services {
        if let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) {
            ordered.insert((namespace.clone(), name.clone()), service);
        }
    }
    let mut table = feed::Table {
        domain: settings.cluster_domain.clone(),
        dns: settings.cluster_dns.map(|listen| feed::Dns {
            listen: listen.to_string(),
            upstreams: settings.upstreams.iter().map(ToString::to_string).collect(),
        }),
        resolve_only: settings.resolve_only,
        policies: policy::policies(objects, settings),
        ..Default::default()
    };
    for ((namespace, name), service) in ordered {
        let slices =
            by_service.get(&(namespace.clone(), name.clone())).map(Vec::as_slice).unwrap_or_default();
        names::add(&mut table.names, &namespace, &name, service, slices, &settings.cluster_domain);
        let entry = service_entry(&format!("{namespace}/{name}"), service, slices, settings);
        table.services.extend(entry.filter(|e| !e.listeners.is_empty()));
    }
    table
}

fn group<'a>(slices: &[&'a EndpointSlice]) -> BTreeMap<(String, String), Vec<&'a EndpointSlice>> {
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

fn service_entry(
    name: &str,
    service: &Service,
    slices: &[&EndpointSlice],
    settings: &Settings,
) -> Option<feed::Service> {
    let spec = service.spec.as_ref()?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return None;
    }
    let affinity = affinity(spec);
    let inside = locality(spec.internal_traffic_policy.as_deref(), settings);
    let outside = locality(spec.external_traffic_policy.as_deref(), settings);
    let not_ready_too = spec.publish_not_ready_addresses.unwrap_or(false);
    let mut listeners = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
        let listener =
            |address: String, number: u32, locality: Locality<'_>, external: bool| feed::Listener {
                address,
                port: number,
                protocol: protocol.into(),
                endpoints: endpoints::of_port(port, slices, not_ready_too, locality),
                port_name: port.name.clone().unwrap_or_default(),
                masquerade: external && matches!(locality, Locality::Anywhere),
            };
        if let Some(number) = port_number(port.port) {
            listeners.extend(cluster_ips(service).into_iter().map(|ip| listener(ip, number, inside, false)));
            let external = external_ips(service, kind);
            listeners.extend(external.into_iter().map(|ip| listener(ip, number, outside, true)));
        }
        if let Some(number) = port.node_port.and_then(port_number)
            && matches!(kind, "NodePort" | "LoadBalancer")
        {
            listeners.push(listener(settings.node_ip.clone(), number, outside, true));
        }
    }
    // The DNS answers there itself.
    listeners.retain(|l| {
        settings
            .cluster_dns
            .is_none_or(|dns| l.address.parse().ok() != Some(dns.ip()) || l.port != u32::from(dns.port()))
    });
    Some(feed::Service {
        name: name.to_owned(),
        listeners,
        client_ip_affinity: affinity.is_some(),
        affinity_seconds: affinity.unwrap_or_default(),
    })
}

/// Whose endpoints serve, by a traffic policy.
fn locality<'a>(policy: Option<&str>, settings: &'a Settings) -> Locality<'a> {
    match policy {
        Some("Local") => Locality::Node(&settings.node_name),
        _ => Locality::Anywhere,
    }
}

/// For how many seconds a silent client keeps its endpoint; `None`: not at all.
fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok());
    Some(seconds.unwrap_or(AFFINITY_SECONDS))
}

/// The Service's own addresses; a headless one has none.
fn cluster_ips(service: &Service) -> Vec<String> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let all = spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter());
    let unique: std::collections::BTreeSet<&String> = all.filter(|a| !a.is_empty() && *a != "None").collect();
    unique.into_iter().cloned().collect()
}

/// Addresses of its load balancer, and those that its owner leads to the nodes.
fn external_ips(service: &Service, kind: &str) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
    let balanced = balancer.filter(|_| kind == "LoadBalancer").and_then(|b| b.ingress.as_ref());
    let balanced = balanced.into_iter().flatten().filter_map(|ingress| ingress.ip.clone());
    let given = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten().cloned());
    balanced.chain(given).collect()
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

#[cfg(test)]
mod tests;
