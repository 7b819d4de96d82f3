//! Pure: the CRI messages that make a pod's sandbox and containers.

use std::collections::HashMap;

use coracle_api::quantity::Quantity;
use coracle_cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::json;

use crate::context::Dns;
use crate::env::expand;
use crate::runtime::label;
use crate::volumes::mounts::Mount;

/// The config of a sandbox; the same for every call that needs it.
pub fn sandbox(pod: &Pod, attempt: u32, log_directory: &str, cluster: &Dns) -> cri::PodSandboxConfig {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let name = text(&meta.name);
    let mut hostname = spec.and_then(|s| s.hostname.clone()).unwrap_or_else(|| name.clone());
    hostname.truncate(hostname.char_indices().take_while(|(i, c)| i + c.len_utf8() <= 63).count());
    let mut labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(identity(pod));
    let node_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let network = if node_network { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
    let namespaces = cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ..Default::default()
    };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name,
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            attempt,
        }),
        hostname: hostname.trim_end_matches(['-', '.']).to_owned(),
        log_directory: log_directory.to_owned(),
        dns_config: Some(dns(pod, cluster)),
        port_mappings: port_mappings(pod),
        labels,
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            }),
            ..Default::default()
        }),
    }
}

/// The labels by which a pod's things are found again.
pub fn identity(pod: &Pod) -> [(String, String); 3] {
    let meta = &pod.metadata;
    [
        (label::POD_NAME.into(), meta.name.clone().unwrap_or_default()),
        (label::POD_NAMESPACE.into(), meta.namespace.clone().unwrap_or_default()),
        (label::POD_UID.into(), meta.uid.clone().unwrap_or_default()),
    ]
}

fn dns(pod: &Pod, cluster: &Dns) -> cri::DnsConfig {
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

fn protocol(name: Option<&str>) -> cri::Protocol {
    match name {
        Some("UDP") => cri::Protocol::Udp,
        Some("SCTP") => cri::Protocol::Sctp,
        _ => cri::Protocol::Tcp,
    }
}

fn port_mappings(pod: &Pod) -> Vec<cri::PortMapping> {
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter());
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    ports
        .filter(|p| p.host_port.unwrap_or(0) != 0)
        .map(|p| cri::PortMapping {
            protocol: protocol(p.protocol.as_deref()).into(),
            container_port: p.container_port,
            host_port: p.host_port.unwrap_or(0),
            host_ip: p.host_ip.clone().unwrap_or_default(),
        })
        .collect()
}

/// The config of a container.
pub fn container(
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    image: &str,
    env: Vec<(String, String)>,
    mounts: Vec<Mount>,
) -> Result<cri::ContainerConfig, String> {
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand::expand(text, lookup)).collect()
    };
    let mut labels: HashMap<String, String> = identity(pod).into_iter().collect();
    labels.insert(label::CONTAINER_NAME.into(), spec.name.clone());
    let (command, args) = (expanded(&spec.command), expanded(&spec.args));
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt }),
        image: Some(cri::ImageSpec {
            image: image.to_owned(),
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        mounts: mounts.into_iter().map(mount).collect(),
        labels,
        annotations: annotations(pod, spec, attempt),
        log_path: format!("{}/{attempt}.log", spec.name),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig { resources: Some(resources(spec)?), security_context: None }),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
        ..Default::default()
    })
}

fn mount(mount: Mount) -> cri::Mount {
    cri::Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.read_only,
        ..Default::default()
    }
}

/// What the kubelet tells a runtime about a container, under the same names.
fn annotations(pod: &Pod, spec: &Container, attempt: u32) -> HashMap<String, String> {
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    let mut annotations = HashMap::from([
        ("io.kubernetes.container.restartCount".to_owned(), attempt.to_string()),
        ("io.kubernetes.pod.terminationGracePeriod".to_owned(), grace.to_string()),
    ]);
    // Pods say by annotation how their handlers run; containers inherit it.
    let own = pod.metadata.annotations.iter().flatten().filter(|(key, _)| key.starts_with("coracle.dev/"));
    annotations.extend(own.map(|(key, value)| (key.clone(), value.clone())));
    let ports: Vec<_> = spec
        .ports
        .iter()
        .flatten()
        .map(|p| {
            let mut port = json!({"containerPort": p.container_port, "protocol": p.protocol.as_deref().unwrap_or("TCP")});
            if let (Some(name), Some(fields)) = (&p.name, port.as_object_mut()) {
                fields.insert("name".into(), json!(name));
            }
            port
        })
        .collect();
    if !ports.is_empty() {
        annotations.insert("io.kubernetes.container.ports".into(), json!(ports).to_string());
    }
    annotations
}

fn resources(spec: &Container) -> Result<cri::LinuxContainerResources, String> {
    let of = |limits: bool, name: &str| -> Result<Option<Quantity>, String> {
        let resources = spec.resources.as_ref();
        let list = resources.and_then(|r| if limits { r.limits.as_ref() } else { r.requests.as_ref() });
        let quantity = list.and_then(|l| l.get(name));
        quantity.map(|q| Quantity::parse(&q.0).map_err(|e| format!("{name} {:?}: {e}", q.0))).transpose()
    };
    let limit = of(true, "cpu")?.map(|q| q.milli_value());
    let request = of(false, "cpu")?.map(|q| q.milli_value()).or(limit).unwrap_or(0);
    Ok(cri::LinuxContainerResources {
        cpu_period: if limit.is_some() { 100_000 } else { 0 },
        cpu_quota: limit.map_or(0, |milli| milli.saturating_mul(100).max(1000)),
        cpu_shares: (request.saturating_mul(1024) / 1000).max(2),
        memory_limit_in_bytes: of(true, "memory")?.map_or(0, |q| q.value()),
        ..Default::default()
    })
}
