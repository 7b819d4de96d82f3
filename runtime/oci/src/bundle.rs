//! A container in the words of the OCI runtime specification: pure, but for what it looks up in the root filesystem
//! (users) and on the host (devices).

pub mod cdi;
mod devices;
mod mounts;
mod process;
mod seccomp;
pub mod user;

use std::path::{Path, PathBuf};

use coracle_cri_api::v1;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// Everything that a bundle is made from.
pub struct Parts<'a> {
    /// The container's id.
    pub id: &'a str,
    /// Its root filesystem, mounted.
    pub rootfs: &'a Path,
    pub image: &'a ImageConfiguration,
    pub config: &'a v1::ContainerConfig,
    pub sandbox: &'a v1::PodSandboxConfig,
    /// What the pod shares.
    pub shared: &'a Shared,
    /// Folders of CDI specifications.
    pub cdi_dirs: &'a [PathBuf],
    /// Control groups count huge pages here; where they do not, nobody is limited.
    pub huge_pages: bool,
    /// Control groups count swap here.
    pub swap: bool,
    /// Control groups are of version 2: a container sees its own group as the first.
    pub unified: bool,
}

/// What the containers of a pod share.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// The folder with `hosts`, `hostname`, `resolv.conf` and `shm`.
    pub dir: PathBuf,
    /// Files of the namespaces; `None` is the host's.
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    /// The process namespace of the pod, or of the container whose processes are to be seen; `None`: its own.
    pub pid: Option<PathBuf>,
    /// The control group of the pod, such as `/coracle/<sandbox>`.
    pub cgroup: String,
}

/// Why there is no bundle: words for the container's status.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// An error in these words.
pub(crate) fn wrong<T>(words: impl Into<String>) -> Result<T, Error> {
    Err(Error(words.into()))
}

impl Shared {
    /// The control group of a container of the pod.
    pub fn cgroup_of(&self, container: &str) -> String {
        format!("{}/{container}", self.cgroup)
    }
}

/// The container's security context, or the default one.
pub(crate) fn security(config: &v1::ContainerConfig) -> v1::LinuxContainerSecurityContext {
    config.linux.as_ref().and_then(|l| l.security_context.clone()).unwrap_or_default()
}

/// The specification (`config.json`) of a container.
///
/// # Errors
/// For what this runtime does not do, and for users, devices and programs that are not there.
pub fn spec(parts: &Parts<'_>) -> Result<Spec, Error> {
    let config = parts.config;
    let security = security(config);
    check(&security, parts.shared)?;
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process::process(parts, &security)?,
        "root": {"path": parts.rootfs, "readonly": security.readonly_rootfs},
        "mounts": mounts::mounts(parts, &security)?,
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {
            "namespaces": namespaces(parts, &security),
            "cgroupsPath": parts.shared.cgroup_of(parts.id),
            "resources": resources(parts),
        },
    });
    if !security.privileged {
        // An empty list from an older kubelet means the defaults too.
        spec["linux"]["maskedPaths"] = json!(or_default(&security.masked_paths, &MASKED));
        spec["linux"]["readonlyPaths"] = json!(or_default(&security.readonly_paths, &READONLY));
    }
    if let Some(propagation) = mounts::of_root(config) {
        spec["linux"]["rootfsPropagation"] = json!(propagation);
    }
    let sysctls = parts.sandbox.linux.as_ref().map(|l| &l.sysctls).filter(|s| !s.is_empty());
    if let Some(sysctls) = sysctls {
        spec["linux"]["sysctl"] = json!(sysctls);
    }
    if let Some(profile) = seccomp::profile(&security, &spec["process"]["capabilities"]["bounding"])? {
        spec["linux"]["seccomp"] = profile;
    }
    devices::add(&mut spec, config, &security)?;
    cdi::add(&mut spec, config, parts.cdi_dirs)?;
    serde_json::from_value(spec).map_err(|e| Error(format!("the specification is not a valid one: {e}")))
}

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn or_default(given: &[String], default: &[&str]) -> Vec<String> {
    if given.is_empty() { default.iter().map(|s| (*s).to_owned()).collect() } else { given.to_vec() }
}

/// What is asked for and not done is refused.
fn check(security: &v1::LinuxContainerSecurityContext, shared: &Shared) -> Result<(), Error> {
    let options = security.namespace_options.clone().unwrap_or_default();
    if options.pid() == v1::NamespaceMode::Target && shared.pid.is_none() {
        return wrong(format!("the target container {:?} does not run", options.target_id));
    }
    // A kubelet says CONTAINER where nothing is shared.
    let shares = security.namespace_options.is_some() && options.pid() == v1::NamespaceMode::Pod;
    if shares && shared.pid.is_none() {
        return wrong(
            "the container is to share the processes of its pod, and the pod was not made for that",
        );
    }
    if options.userns_options.is_some_and(|u| u.mode() == v1::NamespaceMode::Pod) {
        return wrong("user namespaces are not supported yet");
    }
    let localhost = |profile: &Option<v1::SecurityProfile>| {
        profile.as_ref().is_some_and(|p| p.profile_type() == v1::security_profile::ProfileType::Localhost)
    };
    if localhost(&security.apparmor) {
        return wrong("AppArmor profiles by name are not supported yet");
    }
    Ok(())
}

fn namespaces(parts: &Parts<'_>, security: &v1::LinuxContainerSecurityContext) -> Value {
    let shared = parts.shared;
    let mut list = vec![json!({"type": "mount"})];
    let pid = security.namespace_options.as_ref().map(v1::NamespaceOption::pid);
    match pid {
        Some(v1::NamespaceMode::Node) => {}
        _ if shared.pid.is_some() => {}
        _ => list.push(json!({"type": "pid"})),
    }
    let joined = shared.pid.as_ref();
    list.extend(joined.map(|path| json!({"type": "pid", "path": path})));
    let files = [("network", &shared.network), ("ipc", &shared.ipc), ("uts", &shared.uts)];
    let joined =
        files.into_iter().filter_map(|(kind, path)| Some(json!({"type": kind, "path": path.as_ref()?})));
    list.extend(joined);
    // As other runtimes do: version 1 and privileged containers see the host's groups.
    if parts.unified && !security.privileged {
        list.push(json!({"type": "cgroup"}));
    }
    Value::Array(list)
}

/// The limits of a container; what is not asked for is not limited.
fn resources(parts: &Parts<'_>) -> Value {
    let mut asked = parts.config.linux.as_ref().and_then(|l| l.resources.clone()).unwrap_or_default();
    asked.hugepage_limits.retain(|_| parts.huge_pages);
    limits(&asked, parts.swap)
}

/// Most processes and threads of a container.
const MAX_PROCESSES: i64 = 32_768;

/// CRI's limits in the words of the OCI; that of memory and swap together only where control groups count `swap`.
pub fn limits(asked: &v1::LinuxContainerResources, swap: bool) -> Value {
    let mut resources = json!({"pids": {"limit": MAX_PROCESSES}});
    let positive = |n: i64| Some(n).filter(|n| *n > 0);
    let mut cpu = serde_json::Map::new();
    for (name, value) in [
        ("shares", positive(asked.cpu_shares)),
        ("quota", positive(asked.cpu_quota)),
        ("period", positive(asked.cpu_period)),
    ] {
        cpu.extend(value.map(|v| (name.to_owned(), json!(v))));
    }
    for (name, value) in [("cpus", &asked.cpuset_cpus), ("mems", &asked.cpuset_mems)] {
        cpu.extend((!value.is_empty()).then(|| (name.to_owned(), json!(value))));
    }
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(limit) = positive(asked.memory_limit_in_bytes) {
        resources["memory"] = json!({"limit": limit});
    }
    // -1 is as much as there is.
    if swap && asked.memory_swap_limit_in_bytes != 0 {
        resources["memory"]["swap"] = json!(asked.memory_swap_limit_in_bytes);
    }
    let huge = asked.hugepage_limits.iter();
    let huge: Vec<Value> = huge.map(|one| json!({"pageSize": one.page_size, "limit": one.limit})).collect();
    if !huge.is_empty() {
        resources["hugepageLimits"] = Value::Array(huge);
    }
    if !asked.unified.is_empty() {
        resources["unified"] = json!(asked.unified);
    }
    resources
}

#[cfg(test)]
mod tests;
