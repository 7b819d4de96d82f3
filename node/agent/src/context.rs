//! What every part of the agent shares.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::env::fields::Facts;
use crate::events::Recorder;
use crate::eviction::thresholds::Pressure;
use crate::objects::Objects;
use crate::pods::requests::Amounts;
use crate::pods::state::{init_containers, main_containers};
use crate::pods::steps::config::Surroundings;
use crate::pods::steps::config::security::Profiles;
use crate::runtime::Runtime;
use crate::services::Services;
use crate::tokens::{Issued, Tokens};
use crate::tuning::Tuning;

/// Where pods ask for names.
#[derive(Clone, Debug)]
pub struct Dns {
    /// The addresses of the cluster's DNS; without one, pods get the search list alone.
    pub servers: Vec<IpAddr>,
    /// The domain of the cluster's names.
    pub domain: String,
}

impl Default for Dns {
    fn default() -> Self {
        Self { servers: Vec::new(), domain: "cluster.local".to_owned() }
    }
}

/// Shared by all workers.
pub struct Context {
    /// The API server.
    pub client: kube::Client,
    /// The runtime.
    pub runtime: Runtime,
    /// ConfigMaps and Secrets.
    pub objects: Objects,
    /// Tokens of service accounts.
    pub tokens: Tokens,
    /// Services, for the environment of containers.
    pub services: Services,
    /// Events.
    pub recorder: Recorder,
    /// How often probes passed and failed.
    pub probes: crate::probes::counts::Counts,
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub node_ip: IpAddr,
    /// Where volumes and logs lie; absolute.
    pub root: PathBuf,
    /// Where seccomp profiles lie: `seccomp` below the root, as with the kubelet.
    pub profiles: PathBuf,
    /// Millicores of this machine.
    pub cpu_milli: i64,
    /// Bytes of this machine.
    pub machine_memory: i64,
    /// Sizes of this machine's huge pages, in the words of control groups: `2MB`.
    pub page_sizes: Vec<String>,
    /// How busy this machine is.
    pub node_cpu: crate::node::machine::Rate,
    /// What pods may have of this machine.
    pub allocatable: Amounts,
    /// Most pods at a time.
    pub max_pods: u32,
    /// Where pods ask for names.
    pub dns: Dns,
    /// Devices that plugins serve.
    pub devices: coracle_devices::manager::Manager,
    /// Storage drivers that have registered.
    pub csi: crate::csi::Drivers,
    /// Drivers of claimed devices that have registered.
    pub claims: crate::claims::Drivers,
    /// Which containers have processors of their own.
    pub cpus: crate::cpus::Cpus,
    /// Which containers have memory of which memory nodes.
    pub memory: crate::memory::Memory,
    /// Gives pods their processors, memory and devices.
    pub placement: crate::numa::Placement,
    /// What an operator set.
    pub tuning: Tuning,
    /// How full volumes of claims were when they were last looked at.
    pub volume_stats: crate::volumes::stats::Measured,
    /// What the node is short of.
    pub pressure: tokio::sync::watch::Sender<Pressure>,
    /// The node is being shut down: it takes no more pods.
    pub shutting_down: std::sync::atomic::AtomicBool,
    /// Names of the runtime's handlers, as it last told.
    pub handlers: parking_lot::RwLock<Vec<String>>,
    /// It does `supplementalGroupsPolicy: Strict`, as it last told.
    pub strict_groups: std::sync::atomic::AtomicBool,
}

impl Context {
    /// Whether the runtime has a handler for Linux containers.
    pub fn runs_linux(&self) -> bool {
        self.handlers.read().iter().any(|h| !Self::is_wasm(h))
    }

    /// Whether sandboxes of a handler have no Linux containers.
    pub fn is_wasm(handler: &str) -> bool {
        matches!(handler, "" | "wasm" | "wasm-isolated")
    }

    /// Whether a container of the pod has processors of its own.
    pub fn has_own_cpus(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut all = init_containers(pod).iter().chain(main_containers(pod));
        all.any(|spec| self.cpus.has_own(uid, &spec.name))
    }

    /// What the config of a pod's sandbox says besides the pod.
    pub fn surroundings<'a>(&'a self, pod: &Pod, log_directory: &'a Path, linux: bool) -> Surroundings<'a> {
        Surroundings {
            log_directory,
            dns: &self.dns,
            linux,
            own_cpus: self.has_own_cpus(pod),
            resolver: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            profiles: self.profiles(),
        }
    }

    /// Seccomp profiles of this node.
    pub fn profiles(&self) -> Profiles<'_> {
        Profiles { folder: &self.profiles, default: self.tuning.seccomp_default }
    }

    /// What the downward API says besides the pod's own fields.
    pub fn facts(&self, pod_ips: Vec<String>) -> Facts {
        Facts {
            host_ip: self.node_ip.to_string(),
            pod_ips,
            node_cpu_milli: self.cpu_milli,
            node_memory: self.machine_memory,
            tokens: Issued::new(),
        }
    }

    /// Where the logs of a pod lie, as the kubelet names it.
    pub fn log_directory(&self, pod: &Pod) -> PathBuf {
        let meta = &pod.metadata;
        let part = |value: &Option<String>| value.clone().unwrap_or_default().replace('/', "_");
        self.root.join("logs").join(format!(
            "{}_{}_{}",
            part(&meta.namespace),
            part(&meta.name),
            part(&meta.uid)
        ))
    }
}
