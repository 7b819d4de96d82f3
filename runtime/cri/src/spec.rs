//! From what CRI asks to what a wasm host understands: pure translation, with every refusal in words.

mod program;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Component, Path, PathBuf};

use coracle_cri_api::v1;
use coracle_wasm::protocol::{Capabilities, ContainerSpec, DnsConfig, KeyValue, Mount, SandboxSpec};
use serde::Deserialize;
use tonic::Status;

use crate::links;
pub use program::program;

/// The annotation by which the kubelet tells which ports a container declares.
pub const PORTS_ANNOTATION: &str = "io.kubernetes.container.ports";
/// On a pod or container: `fresh` wants a new instance for every request, `pooled` (the default) does not.
pub const INSTANCE_ANNOTATION: &str = "coracle.dev/http-instance";
/// On a container: host capabilities that it is granted, joined by commas. Device plugins say so; the agent lets no pod.
pub const CAPABILITIES_ANNOTATION: &str = "coracle.dev/capabilities";
/// On a container: the GPUs that it has to itself, joined by commas.
pub const DEVICES_ANNOTATION: &str = "coracle.dev/gpu-devices";
/// On a pod or container: the mount path of a volume whose files are settings: grants wasi:config.
pub const CONFIG_ANNOTATION: &str = "coracle.dev/wasi-config";
/// On a pod or container: `memory`, or the mount path of a volume: grants wasi:keyvalue.
pub const KEYVALUE_ANNOTATION: &str = "coracle.dev/wasi-keyvalue";
/// On a pod or container: `true` grants coracle:observe, measurements and spans.
pub const OBSERVE_ANNOTATION: &str = "coracle.dev/observe";
/// The runtime handlers that are known; the empty one is the default.
pub const HANDLERS: [&str; 4] = ["", "wasm", crate::isolated::HANDLER, "runc"];
/// The largest environment, in entries.
const MAX_ENTRIES: usize = 10_000;

fn invalid(message: impl Into<String>) -> Status {
    Status::invalid_argument(message)
}

/// Checks what RunPodSandbox asks, before an address is given out.
pub fn check_sandbox(config: &v1::PodSandboxConfig, handler: &str) -> Result<(), Status> {
    let metadata = config.metadata.as_ref().ok_or_else(|| invalid("the sandbox has no metadata"))?;
    for (field, value) in
        [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)]
    {
        if value.is_empty() {
            return Err(invalid(format!("the sandbox metadata has no {field}")));
        }
    }
    if !HANDLERS.contains(&handler) {
        return Err(invalid(format!("runtime handler {handler:?} is not known; known are {HANDLERS:?}")));
    }
    // On the host's network every port is the host's.
    let mapped = config.port_mappings.iter().find(|m| m.host_port != 0 && !host_network(config));
    if let Some(mapping) = mapped {
        return Err(Status::unimplemented(format!(
            "host port {} for container port {}: host ports are not supported yet",
            mapping.host_port, mapping.container_port
        )));
    }
    Ok(())
}

/// Whether the pod asks to be on the host's network.
pub fn host_network(config: &v1::PodSandboxConfig) -> bool {
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let network = security.and_then(|s| s.namespace_options.as_ref()).map(|n| n.network());
    network == Some(v1::NamespaceMode::Node)
}

/// The sandbox in the words of the host. `netns` is where its sockets are made, if not among the host's own.
pub fn sandbox(id: &str, config: &v1::PodSandboxConfig, ip: Ipv4Addr, netns: Option<PathBuf>) -> SandboxSpec {
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    let hostname = if config.hostname.is_empty() { metadata.name.clone() } else { config.hostname.clone() };
    SandboxSpec {
        id: id.to_owned(),
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        hostname,
        pod_ip: ip,
        netns,
        dns: DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options },
        annotations: sorted(&config.annotations),
    }
}

fn sorted(map: &std::collections::HashMap<String, String>) -> BTreeMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Where a container's log goes.
pub fn log_path(sandbox: &v1::PodSandboxConfig, config: &v1::ContainerConfig) -> Result<PathBuf, Status> {
    let (dir, relative) = (Path::new(&sandbox.log_directory), Path::new(&config.log_path));
    if sandbox.log_directory.is_empty() || config.log_path.is_empty() {
        return Err(invalid(
            "wasm containers need a log directory in the sandbox and a log path in the container",
        ));
    }
    if !dir.is_absolute() {
        return Err(invalid(format!("the log directory {:?} is not absolute", sandbox.log_directory)));
    }
    if !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(invalid(format!("the log path {:?} leaves the log directory", config.log_path)));
    }
    Ok(dir.join(relative))
}

/// The container in the words of the host.
pub fn container(
    id: &str,
    sandbox_id: &str,
    artifact: &Path,
    config: &v1::ContainerConfig,
    sandbox: &v1::PodSandboxConfig,
) -> Result<ContainerSpec, Status> {
    check_container(config)?;
    let metadata = config.metadata.clone().unwrap_or_default();
    let links = links::parse(&sandbox.annotations)?;
    let mut args = config.command.clone();
    if args.is_empty() && !config.args.is_empty() {
        // Without a command the program has the container's name, and the arguments follow it.
        args.push(metadata.name.clone());
    }
    args.extend(config.args.iter().cloned());
    let resources = config.linux.as_ref().and_then(|l| l.resources.as_ref());
    let name = &metadata.name;
    let (linked_to, linked) = (links.of(name), links.to(name));
    Ok(ContainerSpec {
        id: id.to_owned(),
        sandbox_id: sandbox_id.to_owned(),
        name: metadata.name,
        attempt: metadata.attempt,
        artifact: artifact.to_owned(),
        args,
        env: config.envs.iter().map(|e| (e.key.clone(), e.value.clone())).collect(),
        working_dir: config.working_dir.clone(),
        mounts: config.mounts.iter().map(mount).collect::<Result<_, _>>()?,
        http_ports: http_ports(config.annotations.get(PORTS_ANNOTATION).map(String::as_str))?,
        log_path: log_path(sandbox, config)?,
        memory_limit_bytes: resources.and_then(memory_limit),
        cpu_millis: resources.and_then(cpu_millis),
        fresh_instance: fresh_instance(config, sandbox)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        capabilities: capabilities(config, sandbox)?,
        links: linked_to,
        linked,
    })
}

fn list<'a>(config: &'a v1::ContainerConfig, annotation: &str) -> impl Iterator<Item = &'a str> {
    let text = config.annotations.get(annotation).map_or("", String::as_str);
    text.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// What the annotations grant; capabilities that this runtime does not know are nobody's here.
fn capabilities(
    config: &v1::ContainerConfig,
    sandbox: &v1::PodSandboxConfig,
) -> Result<Capabilities, Status> {
    let inference = list(config, CAPABILITIES_ANNOTATION).any(|c| c == "wasi:nn");
    let devices = || list(config, DEVICES_ANNOTATION).map(str::to_owned).collect();
    let path = |annotation: &str| {
        let text = config.annotations.get(annotation).or_else(|| sandbox.annotations.get(annotation));
        text.map(|text| {
            match text.starts_with('/') || (text == "memory" && annotation == KEYVALUE_ANNOTATION) {
                true => Ok(text.clone()),
                false => Err(invalid(format!(
                    "annotation {annotation} is {text:?}; it names the mount path of a volume"
                ))),
            }
        })
    };
    let keyvalue = path(KEYVALUE_ANNOTATION).transpose()?.map(|text| match text.as_str() {
        "memory" => KeyValue::Memory,
        _ => KeyValue::Volume(text),
    });
    let observe = config.annotations.get(OBSERVE_ANNOTATION).or(sandbox.annotations.get(OBSERVE_ANNOTATION));
    let observe = match observe.map(String::as_str) {
        None | Some("false") => false,
        Some("true") => true,
        Some(other) => {
            return Err(invalid(format!("annotation {OBSERVE_ANNOTATION} is {other:?}, not true or false")));
        }
    };
    let config = path(CONFIG_ANNOTATION).transpose()?;
    Ok(Capabilities { inference: inference.then(devices), config, keyvalue, observe })
}

fn check_container(config: &v1::ContainerConfig) -> Result<(), Status> {
    let metadata = config.metadata.as_ref().ok_or_else(|| invalid("the container has no metadata"))?;
    if metadata.name.is_empty() {
        return Err(invalid("the container metadata has no name"));
    }
    let refuse = |what: &str| Err(Status::unimplemented(format!("container {}: {what}", metadata.name)));
    if config.tty {
        return refuse(
            "a wasm container has no terminal: leave `tty` out (-t of kubectl run and kubectl debug; -i alone serves)",
        );
    }
    // A GPU is a capability for a wasm container: what Linux containers get beside it is of no use.
    let capable = list(config, CAPABILITIES_ANNOTATION).next().is_some();
    if !config.devices.is_empty() || !(config.cdi_devices.is_empty() || capable) {
        return refuse("a wasm container cannot be given devices of the host");
    }
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if security.is_some_and(|s| s.privileged) {
        return refuse("a wasm container cannot be privileged");
    }
    for (what, length) in
        [("environment", config.envs.len()), ("mounts", config.mounts.len()), ("args", config.args.len())]
    {
        if length > MAX_ENTRIES {
            return Err(invalid(format!("container {}: more than {MAX_ENTRIES} {what}", metadata.name)));
        }
    }
    Ok(())
}

fn mount(mount: &v1::Mount) -> Result<Mount, Status> {
    if mount.image.is_some() {
        return Err(Status::unimplemented(format!(
            "mount {}: image volumes are not supported yet",
            mount.container_path
        )));
    }
    if !Path::new(&mount.host_path).is_absolute() {
        return Err(invalid(format!(
            "mount {}: the host path {:?} is not absolute",
            mount.container_path, mount.host_path
        )));
    }
    if !mount.container_path.starts_with('/') {
        return Err(invalid(format!("mount {:?}: the container path is not absolute", mount.container_path)));
    }
    Ok(Mount {
        host_path: PathBuf::from(&mount.host_path),
        guest_path: mount.container_path.clone(),
        read_only: mount.readonly,
    })
}

/// Thousandths of a CPU that quota and period allow.
pub fn cpu_millis(resources: &v1::LinuxContainerResources) -> Option<u32> {
    if resources.cpu_quota <= 0 {
        return None;
    }
    let period = if resources.cpu_period > 0 { resources.cpu_period } else { 100_000 };
    let millis = i128::from(resources.cpu_quota) * 1000 / i128::from(period);
    Some(u32::try_from(millis.max(1)).unwrap_or(u32::MAX))
}

/// Bytes of memory, where there is a limit.
pub fn memory_limit(resources: &v1::LinuxContainerResources) -> Option<u64> {
    u64::try_from(resources.memory_limit_in_bytes).ok().filter(|m| *m > 0)
}

/// Resources after an update: what it does not name stays.
pub fn merged(
    mut now: v1::LinuxContainerResources,
    asked: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let set = |now: &mut i64, asked: i64| {
        if asked != 0 {
            *now = asked;
        }
    };
    set(&mut now.cpu_period, asked.cpu_period);
    set(&mut now.cpu_quota, asked.cpu_quota);
    set(&mut now.cpu_shares, asked.cpu_shares);
    set(&mut now.memory_limit_in_bytes, asked.memory_limit_in_bytes);
    set(&mut now.memory_swap_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    for (text, asked) in
        [(&mut now.cpuset_cpus, &asked.cpuset_cpus), (&mut now.cpuset_mems, &asked.cpuset_mems)]
    {
        if !asked.is_empty() {
            text.clone_from(asked);
        }
    }
    now.unified.extend(asked.unified.clone());
    now
}

/// Of each limit of memory and processors the larger one.
pub fn larger(
    one: &v1::LinuxContainerResources,
    other: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let faster = if cpu_millis(one) > cpu_millis(other) { one } else { other };
    let memory_limit_in_bytes = one.memory_limit_in_bytes.max(other.memory_limit_in_bytes);
    v1::LinuxContainerResources { memory_limit_in_bytes, ..faster.clone() }
}

#[derive(Deserialize)]
struct Port {
    #[serde(rename = "containerPort")]
    container_port: u16,
    #[serde(default)]
    protocol: String,
}

/// The TCP ports of the annotation; empty when none is declared.
pub fn http_ports(annotation: Option<&str>) -> Result<Vec<u16>, Status> {
    let Some(text) = annotation.filter(|t| !t.trim().is_empty()) else { return Ok(Vec::new()) };
    let ports: Vec<Port> = serde_json::from_str(text).map_err(|e| {
        invalid(format!("annotation {PORTS_ANNOTATION} is not a list of container ports: {e}"))
    })?;
    let mut found: Vec<u16> = Vec::new();
    for port in ports {
        if port.container_port == 0 {
            return Err(invalid(format!("annotation {PORTS_ANNOTATION}: port 0 cannot be served")));
        }
        let tcp = port.protocol.is_empty() || port.protocol == "TCP";
        if tcp && !found.contains(&port.container_port) {
            found.push(port.container_port);
        }
    }
    Ok(found)
}

fn fresh_instance(config: &v1::ContainerConfig, sandbox: &v1::PodSandboxConfig) -> Result<bool, Status> {
    let asked =
        config.annotations.get(INSTANCE_ANNOTATION).or_else(|| sandbox.annotations.get(INSTANCE_ANNOTATION));
    match asked.map(String::as_str) {
        None | Some("pooled") => Ok(false),
        Some("fresh") => Ok(true),
        Some(other) => {
            Err(invalid(format!("annotation {INSTANCE_ANNOTATION} is {other:?}; it can be fresh or pooled")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                namespace: "default".into(),
                uid: "u1".into(),
                attempt: 0,
            }),
            log_directory: "/logs/pod".into(),
            ..Default::default()
        }
    }

    fn one() -> v1::ContainerConfig {
        v1::ContainerConfig {
            metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 2 }),
            log_path: "app/2.log".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_container_becomes_a_spec() {
        let mut config = one();
        config.args = vec!["--x".into()];
        config.annotations.insert(
            PORTS_ANNOTATION.into(),
            r#"[{"name":"http","containerPort":8081,"protocol":"TCP"},{"containerPort":53,"protocol":"UDP"},{"containerPort":9}]"#.into(),
        );
        config.linux = Some(v1::LinuxContainerConfig {
            resources: Some(v1::LinuxContainerResources {
                cpu_quota: 50_000,
                cpu_period: 100_000,
                memory_limit_in_bytes: 1 << 26,
                ..Default::default()
            }),
            security_context: None,
        });
        let spec = container("c", "s", Path::new("/a.cwasm"), &config, &pod()).unwrap();
        assert_eq!(spec.args, ["app", "--x"]);
        assert_eq!(spec.http_ports, [8081, 9]);
        assert_eq!((spec.cpu_millis, spec.memory_limit_bytes), (Some(500), Some(1 << 26)));
        assert_eq!(spec.log_path, Path::new("/logs/pod/app/2.log"));
        assert!(!spec.fresh_instance);
        assert_eq!(spec.capabilities, Capabilities::default());
        config.annotations.insert(CAPABILITIES_ANNOTATION.into(), "wasi:nn".into());
        config.annotations.insert(DEVICES_ANNOTATION.into(), "GPU-1, GPU-2".into());
        config.cdi_devices.push(v1::CdiDevice { name: "nvidia.com/gpu=GPU-1".into() });
        let spec = container("c", "s", Path::new("/a.cwasm"), &config, &pod()).unwrap();
        assert_eq!(spec.capabilities.keyvalue, None);
        config.annotations.insert(KEYVALUE_ANNOTATION.into(), "memory".into());
        let mut sandbox = pod();
        sandbox.annotations.insert(CONFIG_ANNOTATION.into(), "/etc/settings".into());
        let spec = container("c", "s", Path::new("/a.cwasm"), &config, &sandbox).unwrap();
        assert_eq!(spec.capabilities.keyvalue, Some(KeyValue::Memory));
        assert_eq!(spec.capabilities.config.as_deref(), Some("/etc/settings"));
        assert_eq!(spec.capabilities.inference, Some(vec!["GPU-1".to_owned(), "GPU-2".to_owned()]));
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        type Change = fn(&mut v1::ContainerConfig);
        let cases: [(&str, Change); 10] = [
            ("mount path", |c| drop(c.annotations.insert(CONFIG_ANNOTATION.into(), "memory".into()))),
            ("no name", |c| c.metadata = Some(Default::default())),
            ("no metadata", |c| c.metadata = None),
            ("terminal", |c| c.tty = true),
            ("devices", |c| c.devices.push(Default::default())),
            ("leaves the log directory", |c| c.log_path = "../x".into()),
            ("host path", |c| c.mounts.push(Default::default())),
            ("container ports", |c| drop(c.annotations.insert(PORTS_ANNOTATION.into(), "{".into()))),
            ("container ports", |c| {
                drop(c.annotations.insert(PORTS_ANNOTATION.into(), r#"[{"containerPort":70000}]"#.into()));
            }),
            ("fresh or pooled", |c| drop(c.annotations.insert(INSTANCE_ANNOTATION.into(), "x".into()))),
        ];
        for (words, change) in cases {
            let mut config = one();
            change(&mut config);
            let status = container("c", "s", Path::new("/a"), &config, &pod()).unwrap_err();
            assert!(status.message().contains(words), "{words}: {}", status.message());
        }
        assert!(check_sandbox(&pod(), "wasm").is_ok());
        assert!(check_sandbox(&pod(), "kata").unwrap_err().message().contains("kata"));
        assert!(check_sandbox(&Default::default(), "").is_err());
        let mut host_port = pod();
        host_port.port_mappings.push(v1::PortMapping { host_port: 80, ..Default::default() });
        assert!(check_sandbox(&host_port, "").is_err());
        let node = v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..Default::default() };
        let security =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(node), ..Default::default() };
        host_port.linux =
            Some(v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() });
        assert!(check_sandbox(&host_port, "").is_ok());
    }
}
