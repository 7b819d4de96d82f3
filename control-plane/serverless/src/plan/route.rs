//! A Route becomes what gateways read, and a Service of its name that leads to the gateways.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use coracle_gateway::knative::{Http, KnativeIngress, KnativeIngressSpec, Path, Rule, Split};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision::SERVICE_PORT;
use super::{Standing, owned};
use crate::types::{Address, Route, RouteStatus, Traffic, VISIBILITY_LABEL};

/// The names of a cluster.
#[derive(Clone, Debug)]
pub struct Domains {
    /// Of routes that the outside may use.
    pub outside: String,
    /// The cluster's own.
    pub cluster: String,
}

/// The revisions that shares lead to, or why they do not.
pub type Resolved = Result<Vec<(Traffic, String)>, Standing>;

/// Finds the revision of each share. `latest` has the latest ready revision of each Configuration, `exists` tells whether a
/// revision does.
pub fn resolve(
    route: &Route,
    latest: &HashMap<String, Option<String>>,
    exists: impl Fn(&str) -> bool,
) -> Resolved {
    let sum: i32 = route.spec.traffic.iter().filter_map(|share| share.percent).sum();
    if sum != 100 {
        let message = format!("Traffic targets sum to {sum}, want 100");
        return Err(Standing::False("InvalidTraffic".into(), message));
    }
    let missing = |kind: &str, name: &str| {
        Standing::False(format!("{kind}Missing"), format!("{kind} {name:?} referenced in traffic not found."))
    };
    let mut resolved = Vec::new();
    for share in &route.spec.traffic {
        let revision = match (&share.revision_name, &share.configuration_name) {
            (Some(name), _) if exists(name) => name.clone(),
            (Some(name), _) => return Err(missing("Revision", name)),
            (None, Some(name)) => match latest.get(name) {
                Some(Some(revision)) => revision.clone(),
                Some(None) => {
                    let message =
                        format!("Configuration {name:?} is waiting for a Revision to become ready.");
                    return Err(Standing::Unknown("RevisionMissing", message));
                }
                None => return Err(missing("Configuration", name)),
            },
            (None, None) => return Err(missing("Configuration", "")),
        };
        resolved.push((share.clone(), revision));
    }
    Ok(resolved)
}

/// What the gateways of the nodes read.
pub fn ingress(route: &Route, resolved: &[(Traffic, String)], domains: &Domains) -> KnativeIngress {
    let namespace = route.namespace().unwrap_or_default();
    let split = |revision: &str, percent: i32| Split {
        service_namespace: namespace.clone(),
        service_name: revision.to_owned(),
        service_port: SERVICE_PORT,
        percent,
    };
    let rule = |name: &str, splits: Vec<Split>| Rule {
        hosts: hosts(route, name, domains),
        http: Http { paths: vec![Path { path: None, splits }] },
    };
    let shares: Vec<_> = resolved
        .iter()
        .filter_map(|(share, revision)| Some(split(revision, share.percent.filter(|percent| *percent > 0)?)))
        .collect();
    let mut rules = vec![rule(&route.name_any(), shares)];
    for (share, revision) in resolved {
        if let Some(tag) = &share.tag {
            rules.push(rule(&format!("{tag}-{}", route.name_any()), vec![split(revision, 100)]));
        }
    }
    let mut ingress = KnativeIngress::new(&route.name_any(), KnativeIngressSpec { rules });
    ingress.metadata = owned(route, &route.name_any(), BTreeMap::new());
    ingress
}

fn is_local(route: &Route) -> bool {
    route.labels().get(VISIBILITY_LABEL).is_some_and(|value| value == "cluster-local")
}

fn hosts(route: &Route, name: &str, domains: &Domains) -> Vec<String> {
    let short = format!("{name}.{}", route.namespace().unwrap_or_default());
    let mut hosts = vec![short.clone(), format!("{short}.svc"), format!("{short}.svc.{}", domains.cluster)];
    if !is_local(route) {
        hosts.push(format!("{short}.{}", domains.outside));
    }
    hosts
}

/// The Service of the route's name: programs in the cluster reach the gateways through it.
pub fn service(route: &Route) -> Service {
    let ports = vec![ServicePort {
        name: Some("http".into()),
        port: SERVICE_PORT,
        protocol: Some("TCP".into()),
        target_port: Some(IntOrString::Int(SERVICE_PORT)),
        ..ServicePort::default()
    }];
    Service {
        metadata: owned(route, &route.name_any(), BTreeMap::new()),
        spec: Some(ServiceSpec { ports: Some(ports), ..ServiceSpec::default() }),
        status: None,
    }
}

/// Where that Service leads: the gateways that listen on one port. Gateways of other ports are in slices of their own.
pub fn slices(route: &Route, gateways: &[SocketAddr]) -> Vec<EndpointSlice> {
    let mut by_port: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for gateway in gateways {
        by_port.entry(gateway.port()).or_default().push(gateway.ip().to_string());
    }
    let labels: BTreeMap<_, _> = [
        ("kubernetes.io/service-name".to_owned(), route.name_any()),
        ("endpointslice.kubernetes.io/managed-by".to_owned(), crate::IDENTITY.to_owned()),
    ]
    .into();
    let slice = |(port, addresses): (u16, Vec<String>)| EndpointSlice {
        metadata: owned(route, &format!("{}-gateway-{port}", route.name_any()), labels.clone()),
        address_type: "IPv4".into(),
        ports: Some(vec![EndpointPort {
            name: Some("http".into()),
            port: Some(port.into()),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        }]),
        endpoints: Some(
            addresses
                .into_iter()
                .map(|address| Endpoint {
                    addresses: vec![address],
                    conditions: Some(EndpointConditions {
                        ready: Some(true),
                        serving: Some(true),
                        terminating: Some(false),
                    }),
                    ..Endpoint::default()
                })
                .collect(),
        ),
    };
    by_port.into_iter().map(slice).collect()
}

/// What a Route says of itself.
pub fn status(route: &Route, resolved: &Resolved, domains: &Domains, now: &Time) -> RouteStatus {
    let before = route.status.clone().unwrap_or_default();
    let name = format!("{}.{}", route.name_any(), route.namespace().unwrap_or_default());
    let inside = format!("http://{name}.svc.{}", domains.cluster);
    let outside = |name: &str| format!("http://{name}.{}", domains.outside);
    let (assigned, traffic) = match resolved {
        Ok(shares) => (Standing::True, shares.clone()),
        Err(standing) => (standing.clone(), Vec::new()),
    };
    let told = traffic.into_iter().map(|(share, revision)| Traffic {
        url: share.tag.as_ref().map(|tag| outside(&format!("{tag}-{name}"))),
        latest_revision: Some(share.revision_name.is_none()),
        revision_name: Some(revision),
        configuration_name: None,
        ..share
    });
    RouteStatus {
        observed_generation: route.metadata.generation.unwrap_or_default(),
        conditions: vec![
            assigned.condition("AllTrafficAssigned", &before.conditions, now),
            assigned.condition("Ready", &before.conditions, now),
        ],
        url: Some(if is_local(route) { inside.clone() } else { outside(&name) }),
        address: Some(Address { url: inside }),
        traffic: told.collect(),
    }
}
