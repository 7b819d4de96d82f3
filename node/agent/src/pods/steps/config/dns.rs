//! Pure: where the programs of a pod ask for names.

use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use crate::context::Dns;

/// By `dnsPolicy` and `dnsConfig`. An empty answer means: as the node itself asks.
pub fn config(pod: &Pod, cluster: &Dns) -> cri::DnsConfig {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let mut config = cri::DnsConfig::default();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let node_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    if policy == "ClusterFirstWithHostNet" || policy == "ClusterFirst" && !node_network {
        let domain = &cluster.domain;
        config.servers = cluster.servers.iter().map(ToString::to_string).collect();
        config.searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        config.options = vec!["ndots:5".into()];
    }
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        config.servers.extend(own.nameservers.iter().flatten().cloned());
        config.searches.extend(own.searches.iter().flatten().cloned());
        config.options.extend(own.options.iter().flatten().filter_map(|o| {
            let name = o.name.as_ref()?;
            Some(o.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")))
        }));
    }
    config
}
