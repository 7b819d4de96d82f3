//! Which endpoints serve a port of a Service.

use std::collections::BTreeSet;

use coracle_cri_api::network as feed;
use k8s_openapi::api::core::v1::ServicePort;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::port_number;

/// Whose endpoints serve.
#[derive(Clone, Copy, Debug)]
pub enum Locality<'a> {
    Anywhere,
    /// Only those on the node of this name.
    Node(&'a str),
}

impl Locality<'_> {
    fn admits(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Node(name) => endpoint.node_name.as_deref() == Some(name),
        }
    }
}

/// The API's rule: an absent `ready` means ready.
pub fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

/// The port of a slice that a Service port leads to: slices name ports as the Service does.
pub fn slice_port(slice: &EndpointSlice, port: &ServicePort) -> Option<u32> {
    let name = port.name.as_deref().unwrap_or_default();
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let matching = slice.ports.iter().flatten().find(|p| {
        p.name.as_deref().unwrap_or_default() == name && p.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    matching.and_then(|p| p.port).and_then(port_number)
}

/// Ready endpoints of one Service port. When none is ready, those that still serve while they terminate are used, as
/// kube-proxy does.
pub fn of_port(
    port: &ServicePort,
    slices: &[&EndpointSlice],
    not_ready_too: bool,
    locality: Locality<'_>,
) -> Vec<feed::Endpoint> {
    let mut ready = BTreeSet::new();
    let mut draining = BTreeSet::new();
    for slice in slices {
        let Some(number) = slice_port(slice, port) else { continue };
        for endpoint in slice.endpoints.iter().flatten().filter(|e| locality.admits(e)) {
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
