//! What a cluster may choose about its built-in kinds.

use std::net::IpAddr;

use coracle_apiserver::kubelet_proxy::KubeletProxy;

use crate::check::Cidr;

/// Choices that the kinds depend on.
#[derive(Clone)]
pub struct RegistryOptions {
    /// Addresses of Services; its first is that of `kubernetes`.
    pub service_cidr: Cidr,
    /// Addresses of pods, which may be loopback.
    pub pod_cidr: Cidr,
    /// Node ports, both ends included.
    pub node_ports: (u16, u16),
    /// Where the API server listens, for the endpoints of `kubernetes`.
    pub api_server: (IpAddr, u16),
    /// The client for nodes, for logs and `nodes/proxy`; without it they answer 503.
    pub kubelet: Option<KubeletProxy>,
}

impl Default for RegistryOptions {
    /// The network profile `loopback`.
    fn default() -> Self {
        let v4 = |a: u8, b: u8, bits: u8| Cidr { base: IpAddr::from([127, a, b, 0]), bits };
        Self {
            service_cidr: v4(96, 0, 12),
            pod_cidr: v4(64, 0, 11),
            node_ports: (30000, 32767),
            api_server: (IpAddr::from([127, 0, 0, 1]), 6443),
            kubelet: None,
        }
    }
}
