//! Services and the addresses of their ready endpoints.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::{Backend, BackendKey, CONCURRENCY_ANNOTATION, PortName, REVISION_LABEL};

/// Every Service of the cluster by namespace and name, with its slices.
#[derive(Default)]
pub struct Services<'a> {
    services: HashMap<(&'a str, &'a str), (&'a Service, Vec<&'a EndpointSlice>)>,
}

impl<'a> Services<'a> {
    /// Ties slices to their Services.
    pub fn new(
        services: impl Iterator<Item = &'a Service>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut all = Self::default();
        for service in services {
            if let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) {
                all.services.insert((namespace, name), (service, Vec::new()));
            }
        }
        for slice in slices {
            let service =
                slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
            if let (Some(namespace), Some(service)) = (&slice.metadata.namespace, service)
                && let Some((_, slices)) = all.services.get_mut(&(namespace.as_str(), service.as_str()))
            {
                slices.push(slice);
            }
        }
        all
    }

    /// A port of a Service as it is now; without endpoints where the Service or the port does not exist.
    pub fn backend(&self, key: &BackendKey) -> Backend {
        let mut backend = Backend { key: key.clone(), endpoints: Vec::new(), revision: None, concurrency: 0 };
        let Some((service, slices)) = self.services.get(&(key.namespace.as_str(), key.service.as_str()))
        else {
            return backend;
        };
        backend.revision = service.metadata.labels.as_ref().and_then(|l| l.get(REVISION_LABEL)).cloned();
        let annotations = service.metadata.annotations.as_ref();
        backend.concurrency = annotations
            .and_then(|all| all.get(CONCURRENCY_ANNOTATION))
            .and_then(|text| text.parse().ok())
            .unwrap_or(0);
        let port =
            service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).find(|port| match &key.port {
                PortName::Number(number) => port.port == *number,
                PortName::Name(name) => port.name.as_ref() == Some(name),
            });
        let Some(port) = port else { return backend };
        let name = port.name.as_deref().unwrap_or_default();
        for slice in slices {
            backend.endpoints.extend(ready(slice, name));
        }
        backend.endpoints.sort();
        backend.endpoints.dedup();
        backend
    }
}

/// The ready addresses of a slice at the port of a name.
fn ready<'a>(slice: &'a EndpointSlice, name: &str) -> impl Iterator<Item = SocketAddr> + 'a {
    let port = slice
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref().unwrap_or_default() == name)
        .and_then(|port| u16::try_from(port.port?).ok());
    let ready = slice
        .endpoints
        .iter()
        .flatten()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true))
        .flat_map(|endpoint| &endpoint.addresses);
    ready.filter_map(move |address| Some(SocketAddr::new(address.parse::<IpAddr>().ok()?, port?)))
}
