//! What a cluster may choose about its built-in kinds.

use std::net::IpAddr;
use std::sync::Arc;

use coracle_apiserver::UserInfo;
use coracle_apiserver::authn::{Anonymous, TokenAuthenticator, TokenKey};
use coracle_apiserver::ca::Identity;
use coracle_apiserver::kubelet_proxy::KubeletProxy;

use crate::check::Cidr;

/// The name in the certificate with which this server calls those of aggregated APIs.
pub const FRONT_PROXY: &str = "front-proxy-client";

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
    /// Signs the tokens of service accounts; without one, a key that is lost at the end.
    pub token_key: Option<Arc<TokenKey>>,
    /// The authority's certificate (PEM), published in `kube-public/cluster-info`; None publishes nothing.
    pub ca_pem: Option<String>,
    /// Tokens that are known from the start.
    pub fixed_tokens: Vec<(String, UserInfo)>,
    /// Who else knows tokens.
    pub authenticators: Vec<Arc<dyn TokenAuthenticator>>,
    /// Who may call without saying who he is.
    pub anonymous: Anonymous,
    /// Seconds that a pod stays on a node that is not ready, and on one that cannot be reached, unless it says otherwise.
    pub toleration_seconds: (i64, i64),
    /// By which the servers of aggregated APIs know this one: a certificate of the cluster's authority for [`FRONT_PROXY`].
    pub front_proxy: Option<Identity>,
    /// Whether a StorageClass `local` is made, which claims get that name none.
    pub default_storage_class: bool,
    /// Whether Ingresses are accepted in the versions that Kubernetes removed.
    pub legacy_manifests: bool,
    /// Whether who sets owners of objects needs rights over the objects and the owners
    /// (OwnerReferencesPermissionEnforcement, which Kubernetes leaves off as well).
    pub enforce_owner_permissions: bool,
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
            token_key: None,
            ca_pem: None,
            fixed_tokens: Vec::new(),
            authenticators: Vec::new(),
            anonymous: Anonymous::default(),
            toleration_seconds: (300, 300),
            front_proxy: None,
            default_storage_class: true,
            legacy_manifests: false,
            enforce_owner_permissions: false,
            kubelet: None,
        }
    }
}

/// Choices that cannot hold together.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The Service range has no room.
    #[error("the Service range {0}/{1} is too small: it needs 8 addresses at least")]
    ServiceRange(IpAddr, u8),
    /// Pods and Services would share addresses.
    #[error("the Service range {0} and the pod range {1} overlap")]
    Overlap(String, String),
    /// Node ports from high to low, or port 0.
    #[error("node ports {0}-{1} are no range")]
    NodePorts(u16, u16),
    /// There is no key for tokens.
    #[error("making a key for the tokens of service accounts")]
    TokenKey(#[source] coracle_apiserver::ca::Error),
}

impl RegistryOptions {
    /// Ranges whose addresses endpoints may have although they are loopback: a cluster whose pods live on loopback addresses has
    /// its pods, API server and nodes there. Nodes are 127.0.N.1; 127.0.0.0/24 is the host's own.
    pub fn loopback_endpoints(&self) -> Vec<Cidr> {
        let mut own = vec![self.pod_cidr];
        let (api_server, _) = self.api_server;
        if self.pod_cidr.base.is_loopback() {
            if api_server.is_loopback() {
                own.push(Cidr { base: api_server, bits: if api_server.is_ipv4() { 32 } else { 128 } });
            }
            own.extend((0..8).map(|n| Cidr { base: [127, 0, 1 << n, 0].into(), bits: 24 - n }));
        }
        own
    }

    /// Whether the choices can hold together.
    ///
    /// # Errors
    /// The first that cannot.
    pub fn check(&self) -> Result<(), OptionsError> {
        let (service, pod) = (self.service_cidr, self.pod_cidr);
        let width = if service.base.is_ipv4() { 32 } else { 128 };
        if u32::from(service.bits) + 3 > width {
            return Err(OptionsError::ServiceRange(service.base, service.bits));
        }
        if service.contains(pod.base) || pod.contains(service.base) {
            return Err(OptionsError::Overlap(service.to_string(), pod.to_string()));
        }
        let (first, last) = self.node_ports;
        if first == 0 || first > last {
            return Err(OptionsError::NodePorts(first, last));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_hold_together() {
        assert!(RegistryOptions::default().check().is_ok());
        let with = |service: &str, pod: &str| RegistryOptions {
            service_cidr: service.parse().unwrap(),
            pod_cidr: pod.parse().unwrap(),
            ..RegistryOptions::default()
        };
        assert!(with("127.96.0.0/30", "10.0.0.0/8").check().is_err());
        assert!(with("127.96.0.0/12", "127.0.0.0/8").check().is_err());
        assert!(with("fd00::/112", "10.0.0.0/8").check().is_ok());
    }
}
