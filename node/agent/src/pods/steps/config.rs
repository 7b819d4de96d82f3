//! Pure: the CRI messages that make a pod's sandbox and containers.

use std::collections::HashMap;
use std::path::Path;

use coracle_cri_api::{annotation, signal, v1 as cri};
use coracle_devices::annotation as granted;
use coracle_devices::v1beta1::ContainerAllocateResponse;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::json;

use crate::context::Dns;
use crate::cpus::Share;
use crate::env::expand;
use crate::pods::termination;
use crate::runtime::label;
use crate::volumes::mounts::Mount;

mod dns;
pub mod hostname;
pub mod resources;
pub mod security;

use security::{ImageUser, Profiles};

/// What a sandbox's config says besides the pod.
pub struct Surroundings<'a> {
    /// Where logs lie.
    pub log_directory: &'a Path,
    /// Where pods ask for names.
    pub dns: &'a Dns,
    /// Some container is a Linux container.
    pub linux: bool,
    /// Some container has processors of its own.
    pub own_cpus: bool,
    /// What the node itself asks for names: its `resolv.conf`.
    pub resolver: String,
    /// Seccomp profiles of the node.
    pub profiles: Profiles<'a>,
}

/// The config of a sandbox; the same for every call that needs it.
pub fn sandbox(pod: &Pod, attempt: u32, of: &Surroundings<'_>) -> cri::PodSandboxConfig {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let name = text(&meta.name);
    let domain = &of.dns.domain;
    // Without room for the whole name there is no sandbox: that is told where one is made.
    let hostname = hostname::nodename(pod, domain).unwrap_or_else(|_| hostname::names(pod, domain).0);
    let mut labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(identity(pod));
    let security = spec.and_then(|s| s.security_context.as_ref());
    let sysctls = security.into_iter().flat_map(|s| s.sysctls.iter().flatten());
    let mut annotations: HashMap<String, String> =
        meta.annotations.clone().unwrap_or_default().into_iter().collect();
    // What a user writes there is not for the user to say.
    annotations.retain(|key, _| key != granted::CAPABILITIES && key != granted::DEVICES);
    annotations.insert(annotation::LINUX_CONTAINERS.to_owned(), of.linux.to_string());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name,
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            attempt,
        }),
        hostname,
        log_directory: of.log_directory.to_string_lossy().into_owned(),
        dns_config: Some(dns::config(pod, of.dns, &of.resolver).0),
        port_mappings: port_mappings(pod),
        labels,
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(security::sandbox(pod, of.profiles)),
            resources: Some(resources::sandbox(pod, of.own_cpus)),
            overhead: resources::overhead(pod),
            sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
            ..Default::default()
        }),
    }
}

/// What of a pod's wishes for names is left out, in the words of `DNSConfigForming` Events.
pub fn unformed_dns(pod: &Pod, of: &Surroundings<'_>) -> Vec<String> {
    dns::config(pod, of.dns, &of.resolver).1
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

/// What a container's config says besides its spec.
#[derive(Default)]
pub struct Ingredients<'a> {
    /// 0 for the first.
    pub attempt: u32,
    /// What CreateContainer is to use.
    pub image: String,
    /// Whom the image runs as.
    pub user: ImageUser,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Its volumes.
    pub mounts: Vec<Mount>,
    /// Of an ephemeral container: the id of the container whose processes it is to see.
    pub target: Option<String>,
    /// Its devices.
    pub devices: ContainerAllocateResponse,
    /// Bytes of this machine.
    pub node_memory: i64,
    /// Seccomp profiles of the node.
    pub profiles: Profiles<'a>,
    /// The processors that it runs on; `None`: all.
    pub cpus: Option<Share>,
    /// The memory nodes that it has memory of, in the kernel's words; empty: all.
    pub mems: String,
    /// Sizes of this machine's huge pages, in the words of control groups.
    pub page_sizes: &'a [String],
}

/// The config of a container.
///
/// # Errors
/// The words of a `CreateContainerConfigError`.
pub fn container(pod: &Pod, spec: &Container, of: Ingredients<'_>) -> Result<cri::ContainerConfig, String> {
    let Ingredients { attempt, image, user, mut env, mounts, target, devices, node_memory, profiles, .. } =
        of;
    let resources = resources::no_other_pages(of.page_sizes, resources::container(pod, spec, node_memory)?);
    let resources = resources::on(of.cpus, of.mems, resources);
    // What a plugin sets, nobody overrides.
    env.retain(|(name, _)| !devices.envs.contains_key(name));
    env.extend(devices.envs);
    let lookup = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    let expanded = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|text| expand::expand(text, lookup)).collect()
    };
    let mut labels: HashMap<String, String> = identity(pod).into_iter().collect();
    labels.insert(label::CONTAINER_NAME.into(), spec.name.clone());
    let (command, args) = (expanded(&spec.command), expanded(&spec.args));
    let mut annotations = annotations(pod, spec, attempt);
    annotations.extend(devices.annotations);
    let plugin_mounts = devices.mounts.into_iter().map(|m| cri::Mount {
        container_path: m.container_path,
        host_path: m.host_path,
        readonly: m.read_only,
        ..Default::default()
    });
    let nodes = devices.devices.into_iter().map(|d| cri::Device {
        container_path: d.container_path,
        host_path: d.host_path,
        permissions: d.permissions,
    });
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt }),
        image: Some(cri::ImageSpec {
            image,
            user_specified_image: spec.image.clone().unwrap_or_default(),
            ..Default::default()
        }),
        command,
        args,
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        mounts: mounts.into_iter().map(mount).chain(plugin_mounts).collect(),
        devices: nodes.collect(),
        cdi_devices: devices.cdi_devices.into_iter().map(|d| cri::CdiDevice { name: d.name }).collect(),
        labels,
        annotations,
        log_path: format!("{}/{attempt}.log", spec.name),
        stdin: spec.stdin.unwrap_or(false),
        stdin_once: spec.stdin_once.unwrap_or(false),
        tty: spec.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security::into(target, security::container(pod, spec, &user, profiles)?)),
        }),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
        stop_signal: stop_signal(spec)?.into(),
    })
}

/// What asks the container to end; its image or the runtime says it where the pod does not.
fn stop_signal(spec: &Container) -> Result<cri::Signal, String> {
    let named = spec.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()).unwrap_or_default();
    match named {
        "" => Ok(cri::Signal::RuntimeDefault),
        name => signal::parse(name).ok_or_else(|| format!("stop signal {name:?} is not a signal of Linux")),
    }
}

fn mount(mount: Mount) -> cri::Mount {
    let host_path = match mount.sub_path.as_str() {
        "" => mount.host_path,
        place => coracle_cri_api::mount::beneath(&mount.host_path, place),
    };
    cri::Mount {
        container_path: mount.container_path,
        host_path,
        readonly: mount.read_only,
        propagation: mount.propagation.into(),
        ..Default::default()
    }
}

/// What the kubelet tells a runtime about a container, under the same names.
fn annotations(pod: &Pod, spec: &Container, attempt: u32) -> HashMap<String, String> {
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    let last_words = termination::path(spec).to_string_lossy().into_owned();
    let mut annotations = HashMap::from([
        ("io.kubernetes.container.restartCount".to_owned(), attempt.to_string()),
        ("io.kubernetes.container.terminationMessagePath".to_owned(), last_words),
        ("io.kubernetes.pod.terminationGracePeriod".to_owned(), grace.to_string()),
    ]);
    // Pods say by annotation how their handlers run; containers inherit it.
    let granted = [granted::CAPABILITIES, granted::DEVICES];
    let own = pod.metadata.annotations.iter().flatten();
    let own = own.filter(|(key, _)| key.starts_with("coracle.dev/") && !granted.contains(&key.as_str()));
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
