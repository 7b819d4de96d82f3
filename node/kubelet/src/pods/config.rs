//! A container of a pod as CRI wants it: command, environment, mounts, limits.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use coracle_api::quantity::Quantity;
use coracle_cri_api::v1::{
    ContainerConfig, ContainerMetadata, KeyValue, LinuxContainerConfig, LinuxContainerResources, Mount,
    PodSandboxConfig, PodSandboxMetadata,
};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret};
use kube::{Api, Client};
use serde_json::json;

use crate::cri::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID, image_spec};
use crate::volumes::Volumes;

/// A configuration that cannot be made now: the container waits with `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// The annotation that the kubelet sets with the container's ports.
const PORTS: &str = "io.kubernetes.container.ports";
const CPU_PERIOD: i64 = 100_000;

/// The sandbox of a pod.
pub fn sandbox(pod: &Pod, root: &Path, attempt: u32) -> PodSandboxConfig {
    let meta = &pod.metadata;
    let (name, namespace, uid) = (
        meta.name.clone().unwrap_or_default(),
        meta.namespace.clone().unwrap_or_default(),
        meta.uid.clone().unwrap_or_default(),
    );
    let hostname = pod.spec.as_ref().and_then(|spec| spec.hostname.clone()).unwrap_or_else(|| name.clone());
    let mut labels: HashMap<String, String> = meta.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend([
        (POD_NAME.to_owned(), name.clone()),
        (POD_NAMESPACE.to_owned(), namespace.clone()),
        (POD_UID.to_owned(), uid.clone()),
    ]);
    PodSandboxConfig {
        log_directory: log_directory(root, &namespace, &name, &uid).display().to_string(),
        metadata: Some(PodSandboxMetadata { name, uid, namespace, attempt }),
        hostname,
        labels,
        annotations: meta.annotations.clone().unwrap_or_default().into_iter().collect(),
        ..Default::default()
    }
}

/// Where a pod's logs lie.
pub fn log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join("logs").join(format!("{namespace}_{name}_{uid}"))
}

/// A container, with everything that it refers to looked up.
pub async fn container(
    client: &Client,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    volumes: &Volumes,
    facts: &Facts<'_>,
) -> Result<ContainerConfig, ConfigError> {
    let env = environment(client, pod, container, facts).await?;
    let expand = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, &env)).collect()
    };
    let meta = &pod.metadata;
    let labels = HashMap::from([
        (POD_NAME.to_owned(), meta.name.clone().unwrap_or_default()),
        (POD_NAMESPACE.to_owned(), meta.namespace.clone().unwrap_or_default()),
        (POD_UID.to_owned(), meta.uid.clone().unwrap_or_default()),
        (CONTAINER_NAME.to_owned(), container.name.clone()),
    ]);
    let mut annotations =
        HashMap::from([("io.kubernetes.container.restartCount".to_owned(), attempt.to_string())]);
    if let Some(ports) = container.ports.as_ref().filter(|ports| !ports.is_empty()) {
        let ports: Vec<_> = ports
            .iter()
            .map(|port| json!({"name": port.name, "containerPort": port.container_port, "protocol": port.protocol.as_deref().unwrap_or("TCP")}))
            .collect();
        annotations.insert(PORTS.to_owned(), json!(ports).to_string());
    }
    Ok(ContainerConfig {
        metadata: Some(ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(image_spec(container.image.as_deref().unwrap_or_default())),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: env.into_iter().map(|(key, value)| KeyValue { key, value }).collect(),
        mounts: mounts(container, volumes)?,
        labels,
        annotations,
        log_path: format!("{}/{attempt}.log", container.name),
        linux: Some(LinuxContainerConfig { resources: Some(resources(container)?), ..Default::default() }),
        ..Default::default()
    })
}

fn resources(container: &Container) -> Result<LinuxContainerResources, ConfigError> {
    let wanted = container.resources.clone().unwrap_or_default();
    let milli = |list: &Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
                 name: &str| {
        let Some(text) = list.as_ref().and_then(|all| all.get(name)) else { return Ok(None) };
        let quantity = Quantity::parse(&text.0)
            .map_err(|_| ConfigError(format!("{name} of {}: {:?} is no quantity", container.name, text.0)))?;
        Ok::<_, ConfigError>(Some(if name == "memory" { quantity.value() } else { quantity.milli_value() }))
    };
    let clamp = |value: Option<i128>| value.and_then(|one| i64::try_from(one).ok());
    let cpu_limit = clamp(milli(&wanted.limits, "cpu")?.map(i128::from));
    let cpu_request = clamp(milli(&wanted.requests, "cpu")?.map(i128::from));
    let memory = clamp(milli(&wanted.limits, "memory")?.map(i128::from));
    Ok(LinuxContainerResources {
        cpu_period: if cpu_limit.is_some() { CPU_PERIOD } else { 0 },
        cpu_quota: cpu_limit.map_or(0, |milli| (milli * CPU_PERIOD / 1000).max(1000)),
        cpu_shares: cpu_request.map_or(2, |milli| (milli * 1024 / 1000).max(2)),
        memory_limit_in_bytes: memory.unwrap_or(0),
        ..Default::default()
    })
}

fn mounts(container: &Container, volumes: &Volumes) -> Result<Vec<Mount>, ConfigError> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some(volume) = volumes.get(&mount.name) else {
            return Err(ConfigError(format!(
                "volume {:?} of container {} is not in the pod",
                mount.name, container.name
            )));
        };
        let mut host_path = volume.path.clone();
        if let Some(sub_path) = mount.sub_path.as_deref().filter(|path| !path.is_empty()) {
            let plain = Path::new(sub_path).components().all(|part| matches!(part, Component::Normal(_)));
            if !plain {
                return Err(ConfigError(format!("subPath {sub_path:?} must stay inside its volume")));
            }
            host_path.push(sub_path);
        }
        mounts.push(Mount {
            container_path: mount.mount_path.clone(),
            host_path: host_path.display().to_string(),
            readonly: mount.read_only.unwrap_or(false) || volume.read_only,
            ..Default::default()
        });
    }
    Ok(mounts)
}

/// What a pod may ask of itself.
pub struct Facts<'a> {
    pub node_name: &'a str,
    pub host_ip: String,
    pub pod_ip: &'a str,
}

/// The environment, in order; later values win.
async fn environment(
    client: &Client,
    pod: &Pod,
    container: &Container,
    facts: &Facts<'_>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = BTreeMap::from([("HOSTNAME".to_owned(), pod.metadata.name.clone().unwrap_or_default())]);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref
            && let Some(data) = config_map(client, namespace, &reference.name, reference.optional).await?
        {
            env.extend(data.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
        }
        if let Some(reference) = &source.secret_ref
            && let Some(data) = secret(client, namespace, &reference.name, reference.optional).await?
        {
            env.extend(data.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)));
        }
    }
    for one in container.env.iter().flatten() {
        if let Some(value) = value(client, pod, container, namespace, one, facts, &env).await? {
            env.insert(one.name.clone(), value);
        }
    }
    Ok(env)
}

async fn value(
    client: &Client,
    pod: &Pod,
    container: &Container,
    namespace: &str,
    one: &EnvVar,
    facts: &Facts<'_>,
    env: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    let Some(from) = &one.value_from else {
        return Ok(Some(expand(one.value.as_deref().unwrap_or_default(), env)));
    };
    if let Some(key) = &from.config_map_key_ref {
        let data = config_map(client, namespace, &key.name, key.optional).await?;
        return pick(data, &key.key, key.optional, "ConfigMap", namespace, &key.name);
    }
    if let Some(key) = &from.secret_key_ref {
        let data = secret(client, namespace, &key.name, key.optional).await?;
        return pick(data, &key.key, key.optional, "Secret", namespace, &key.name);
    }
    if let Some(field) = &from.field_ref {
        let found = pod_field(pod, &field.field_path, facts);
        return found
            .map(Some)
            .ok_or_else(|| ConfigError(format!("fieldPath {:?} is not supported", field.field_path)));
    }
    if let Some(field) = &from.resource_field_ref {
        return resource_field(container, &field.resource).map(Some);
    }
    Err(ConfigError(format!("env {}: valueFrom names no source that is supported", one.name)))
}

fn pick(
    data: Option<BTreeMap<String, String>>,
    key: &str,
    optional: Option<bool>,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<String>, ConfigError> {
    match data.and_then(|mut all| all.remove(key)) {
        None if !optional.unwrap_or(false) => {
            Err(ConfigError(format!("couldn't find key {key} in {kind} {namespace}/{name}")))
        }
        found => Ok(found),
    }
}

/// A field of the pod, in the words of the downward API.
pub fn pod_field(pod: &Pod, path: &str, facts: &Facts<'_>) -> Option<String> {
    let meta = &pod.metadata;
    let of = |map: &Option<BTreeMap<String, String>>, key: &str| {
        Some(map.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default())
    };
    let all = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<_> = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
        Some(lines.join("\n"))
    };
    let key = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => all(&meta.labels),
        "metadata.annotations" => all(&meta.annotations),
        "spec.nodeName" => Some(facts.node_name.to_owned()),
        "spec.serviceAccountName" => {
            pod.spec.as_ref()?.service_account_name.clone().or(Some("default".to_owned()))
        }
        "status.hostIP" | "status.hostIPs" => Some(facts.host_ip.clone()),
        "status.podIP" | "status.podIPs" => Some(facts.pod_ip.to_owned()),
        _ => key("metadata.labels")
            .and_then(|name| of(&meta.labels, name))
            .or_else(|| key("metadata.annotations").and_then(|name| of(&meta.annotations, name))),
    }
}

fn resource_field(container: &Container, path: &str) -> Result<String, ConfigError> {
    let wrong = || ConfigError(format!("resource {path:?} is not set on container {}", container.name));
    let (list, name) = path.split_once('.').ok_or_else(wrong)?;
    let wanted = container.resources.clone().unwrap_or_default();
    let list = if list == "limits" { wanted.limits } else { wanted.requests };
    let text = list.and_then(|mut all| all.remove(name)).ok_or_else(wrong)?.0;
    let quantity = Quantity::parse(&text).map_err(|_| wrong())?;
    Ok(quantity.value().to_string())
}

/// The data of a ConfigMap; `None` if it may be and is missing.
pub async fn config_map(
    client: &Client,
    namespace: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<BTreeMap<String, String>>, ConfigError> {
    let found = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await;
    match found.map_err(|error| ConfigError(format!("read configmap {name:?}: {error}")))? {
        Some(map) => Ok(Some(map.data.unwrap_or_default())),
        None if optional.unwrap_or(false) => Ok(None),
        None => Err(ConfigError(format!("configmap {name:?} not found"))),
    }
}

/// The data of a Secret that is text; `None` if it may be and is missing.
pub async fn secret(
    client: &Client,
    namespace: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<BTreeMap<String, String>>, ConfigError> {
    let found = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await;
    match found.map_err(|error| ConfigError(format!("read secret {name:?}: {error}")))? {
        Some(secret) => {
            let data = secret.data.unwrap_or_default().into_iter();
            Ok(Some(data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned())).collect()))
        }
        None if optional.unwrap_or(false) => Ok(None),
        None => Err(ConfigError(format!("secret {name:?} not found"))),
    }
}

/// `$(NAME)` becomes the variable's value; `$$` is a dollar; an unknown name stays as it is.
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(more) = after.strip_prefix('$') {
            out.push('$');
            rest = more;
        } else if let Some((name, more)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = more;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_expand_as_kubernetes_does() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expanded) in
            [("$(A)-$(B)", "1-$(B)"), ("$$(A)", "$(A)"), ("$A $", "$A $"), ("$(A", "$(A"), ("", "")]
        {
            assert_eq!(expand(text, &env), expanded, "{text}");
        }
    }
}
