//! What an operator may tune of a node, under the kubelet's names; `coracle up` takes the same flags and hands them on.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use coracle_agent::cpus::options::Options;
use coracle_agent::cpus::{Policy, set};
use coracle_agent::eviction::thresholds;
use coracle_agent::images::gc;
use coracle_agent::logs::rotate;
use coracle_agent::numa::hints::Policy as Closeness;
use coracle_agent::numa::{Scope, Settings};
use coracle_agent::pods::sysctls::Allowed;
use coracle_agent::tuning::options::Gates;
use coracle_agent::tuning::{Eviction, Reserved, Shutdown, Tuning as Agent, duration};
use coracle_agent::{memory, numa};

/// Reservations, eviction, image collection, logs, static pods, shutdown.
#[derive(Args, Clone, Debug)]
#[group(id = "NodeTuning")]
pub struct Tuning {
    /// Most pods at a time.
    #[arg(long, default_value_t = 1000)]
    pub max_pods: u32,
    /// What is kept from pods for the node's own programs, `cpu=100m,memory=256Mi,ephemeral-storage=1Gi`.
    #[arg(long, default_value = "")]
    pub kube_reserved: String,
    /// What is kept from pods for the system's programs.
    #[arg(long, default_value = "")]
    pub system_reserved: String,
    /// Pods are evicted at once when less is left, `memory.available<100Mi,nodefs.available<10%`; 0% is never.
    #[arg(long)]
    pub eviction_hard: Option<String>,
    /// Pods are evicted when less is left for as long as --eviction-soft-grace-period says.
    #[arg(long, default_value = "")]
    pub eviction_soft: String,
    /// By signal, `memory.available=1m30s`.
    #[arg(long, default_value = "")]
    pub eviction_soft_grace_period: String,
    /// The longest grace of a pod that a soft threshold evicts, in seconds.
    #[arg(long, default_value_t = 0)]
    pub eviction_max_pod_grace_period: i64,
    /// How long a condition of the node stays after its cause.
    #[arg(long, default_value = "5m")]
    pub eviction_pressure_transition_period: String,
    /// A JSON file of signals that stand in for the machine's, `{"memory.available": "50Mi"}`: a rehearsal of pressure.
    #[arg(long, hide = true)]
    pub eviction_signals_file: Option<PathBuf>,
    /// How often signals are read.
    #[arg(long, default_value = "10s", hide = true)]
    pub eviction_monitoring_period: String,
    /// Percent of the images' disk in use at which unused images are removed; 100 is never.
    #[arg(long)]
    pub image_gc_high_threshold: Option<u8>,
    /// Percent that is to be reached then.
    #[arg(long, default_value_t = 80)]
    pub image_gc_low_threshold: u8,
    /// Unused images stay at least so long.
    #[arg(long, default_value = "2m")]
    pub minimum_image_ttl_duration: String,
    /// Images unused for so long are removed whatever room there is; 0 is never.
    #[arg(long, default_value = "0")]
    pub image_maximum_gc_age: String,
    /// The size at which a container's log is put aside.
    #[arg(long, default_value = "10Mi")]
    pub container_log_max_size: String,
    /// Log files that are kept of a container, at least 2.
    #[arg(long, default_value_t = 5)]
    pub container_log_max_files: usize,
    /// How often the sizes of logs are looked at.
    #[arg(long, default_value = "10s")]
    pub container_log_monitor_interval: String,
    /// A directory of manifests of static pods, or one such file.
    #[arg(long)]
    pub pod_manifest_path: Option<PathBuf>,
    /// `static` gives containers of Guaranteed Linux pods that ask for whole processors some of their own; `none`.
    #[arg(long, default_value = "none", value_parser = ["none", "static"])]
    pub cpu_manager_policy: String,
    /// How that policy gives processors, `full-pcpus-only=true,...`: also `distribute-cpus-across-numa`, `strict-cpu-reservation`,
    /// `prefer-align-cpus-by-uncorecache`, and the alpha ones `align-by-socket` and `distribute-cpus-across-cores`.
    #[arg(long, default_value = "")]
    pub cpu_manager_policy_options: String,
    /// Processors that are nobody's own, `0-1`, instead of any `cpu` of the other reservations; without them as many as those say.
    #[arg(long, default_value = "")]
    pub reserved_cpus: String,
    /// `Static` gives containers of Guaranteed Linux pods their memory and huge pages of chosen memory nodes; `None`.
    #[arg(long, default_value = "None", value_parser = ["None", "Static"])]
    pub memory_manager_policy: String,
    /// What of each memory node's memory is not for pods, `0:memory=1Gi,hugepages-2Mi=64Mi`; may be repeated. In all it has
    /// to be what the other reservations and --eviction-hard keep from pods.
    #[arg(long)]
    pub reserved_memory: Vec<String>,
    /// How close together processors, memory and devices of a container are to be: `none`, `best-effort`, `restricted` or
    /// `single-numa-node`.
    #[arg(long, default_value = "none", value_parser = ["none", "best-effort", "restricted", "single-numa-node"])]
    pub topology_manager_policy: String,
    /// What is placed together: each `container`, or a whole `pod`.
    #[arg(long, default_value = "container", value_parser = ["container", "pod"])]
    pub topology_manager_scope: String,
    /// How it chooses, `prefer-closest-numa-nodes=true,max-allowable-numa-nodes=16`.
    #[arg(long, default_value = "")]
    pub topology_manager_policy_options: String,
    /// Groups of such options that may be used, or not: `CPUManagerPolicyAlphaOptions=true`.
    #[arg(long, default_value = "")]
    pub feature_gates: String,
    /// Keeps what is reserved from Linux pods, all together, by their control group; `none`: they may use it up.
    #[arg(long, default_value = "pods", value_parser = ["pods", "none"])]
    pub enforce_node_allocatable: String,
    /// Kernel parameters that pods may set besides the safe ones, `kernel.msg*,net.core.somaxconn`; those of a namespace.
    #[arg(long, default_value = "")]
    pub allowed_unsafe_sysctls: String,
    /// Linux containers that name no seccomp profile get the runtime's default one.
    #[arg(long, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub seccomp_default: bool,
    /// How long pods may take to end when the machine shuts down (SIGPWR); 0: they are not ended.
    #[arg(long, default_value = "0")]
    pub shutdown_grace_period: String,
    /// The part of it that is kept for critical pods.
    #[arg(long, default_value = "0")]
    pub shutdown_grace_period_critical_pods: String,
}

impl Tuning {
    /// The flags, as a node takes them.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        let mut flags = vec![
            ("max-pods", self.max_pods.to_string()),
            ("kube-reserved", self.kube_reserved.clone()),
            ("system-reserved", self.system_reserved.clone()),
            ("eviction-soft", self.eviction_soft.clone()),
            ("eviction-soft-grace-period", self.eviction_soft_grace_period.clone()),
            ("eviction-max-pod-grace-period", self.eviction_max_pod_grace_period.to_string()),
            ("eviction-pressure-transition-period", self.eviction_pressure_transition_period.clone()),
            ("eviction-monitoring-period", self.eviction_monitoring_period.clone()),
            ("image-gc-low-threshold", self.image_gc_low_threshold.to_string()),
            ("minimum-image-ttl-duration", self.minimum_image_ttl_duration.clone()),
            ("image-maximum-gc-age", self.image_maximum_gc_age.clone()),
            ("container-log-max-size", self.container_log_max_size.clone()),
            ("container-log-max-files", self.container_log_max_files.to_string()),
            ("container-log-monitor-interval", self.container_log_monitor_interval.clone()),
            ("cpu-manager-policy", self.cpu_manager_policy.clone()),
            ("cpu-manager-policy-options", self.cpu_manager_policy_options.clone()),
            ("reserved-cpus", self.reserved_cpus.clone()),
            ("memory-manager-policy", self.memory_manager_policy.clone()),
            ("topology-manager-policy", self.topology_manager_policy.clone()),
            ("topology-manager-scope", self.topology_manager_scope.clone()),
            ("topology-manager-policy-options", self.topology_manager_policy_options.clone()),
            ("feature-gates", self.feature_gates.clone()),
            ("enforce-node-allocatable", self.enforce_node_allocatable.clone()),
            ("allowed-unsafe-sysctls", self.allowed_unsafe_sysctls.clone()),
            ("seccomp-default", self.seccomp_default.to_string()),
            ("shutdown-grace-period", self.shutdown_grace_period.clone()),
            ("shutdown-grace-period-critical-pods", self.shutdown_grace_period_critical_pods.clone()),
        ];
        let path =
            |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone()).display().to_string();
        flags.extend(self.reserved_memory.iter().map(|text| ("reserved-memory", text.clone())));
        flags.extend(self.eviction_hard.iter().map(|text| ("eviction-hard", text.clone())));
        flags.extend(self.image_gc_high_threshold.iter().map(|n| ("image-gc-high-threshold", n.to_string())));
        flags.extend(self.eviction_signals_file.iter().map(|file| ("eviction-signals-file", path(file))));
        flags.extend(self.pod_manifest_path.iter().map(|file| ("pod-manifest-path", path(file))));
        flags
    }

    /// The same for a machine that is somebody's own: its disk may be nearly full, and nothing is removed for that.
    pub fn for_own_machine(&self) -> Self {
        let mut tuning = self.clone();
        tuning.eviction_hard.get_or_insert_with(|| "memory.available<100Mi".to_owned());
        tuning.image_gc_high_threshold.get_or_insert(100);
        tuning
    }

    fn topology(&self, options: numa::options::Options) -> Settings {
        let named = |(word, _): &&(&str, Closeness)| *word == self.topology_manager_policy;
        let policy = Closeness::WORDS.iter().find(named).map(|(_, policy)| *policy);
        let scope = if self.topology_manager_scope == "pod" { Scope::Pod } else { Scope::Container };
        Settings { policy: policy.unwrap_or_default(), scope, options }
    }

    /// As the agent takes it.
    ///
    /// # Errors
    /// Which flag is wrong, and why.
    pub fn agent(&self) -> Result<Agent> {
        let wrong = |flag: &str| {
            let flag = flag.to_owned();
            move |why: String| anyhow!("--{flag}: {why}")
        };
        let time = |flag: &str, text: &str| duration(text).map_err(wrong(flag));
        let mut hard = match &self.eviction_hard {
            Some(text) => thresholds::hard(text).map_err(wrong("eviction-hard"))?,
            None => thresholds::defaults(),
        };
        let soft = thresholds::soft(&self.eviction_soft, &self.eviction_soft_grace_period);
        hard.extend(soft.map_err(wrong("eviction-soft"))?);
        let size = coracle_api::quantity::Quantity::parse(&self.container_log_max_size);
        let size = size.context("--container-log-max-size")?.value();
        let gates = Gates::parse(&self.feature_gates).map_err(wrong("feature-gates"))?;
        let closeness = numa::options::Options::parse(&self.topology_manager_policy_options, &gates);
        let processors = Options::parse(&self.cpu_manager_policy_options, &gates);
        let mut agent = Agent {
            kube_reserved: Reserved::parse(&self.kube_reserved).map_err(wrong("kube-reserved"))?,
            system_reserved: Reserved::parse(&self.system_reserved).map_err(wrong("system-reserved"))?,
            eviction: Eviction {
                thresholds: hard,
                period: time("eviction-monitoring-period", &self.eviction_monitoring_period)?,
                transition: time(
                    "eviction-pressure-transition-period",
                    &self.eviction_pressure_transition_period,
                )?,
                max_pod_grace: self.eviction_max_pod_grace_period,
                signals: self.eviction_signals_file.clone(),
            },
            images: gc::Limits {
                high: self.image_gc_high_threshold.unwrap_or(gc::Limits::default().high),
                low: self.image_gc_low_threshold,
                min_age: time("minimum-image-ttl-duration", &self.minimum_image_ttl_duration)?,
                max_age: time("image-maximum-gc-age", &self.image_maximum_gc_age)?,
                ..Default::default()
            },
            logs: rotate::Limits {
                bytes: u64::try_from(size).unwrap_or(0).max(1),
                files: self.container_log_max_files,
                period: time("container-log-monitor-interval", &self.container_log_monitor_interval)?,
            },
            static_pods: self.pod_manifest_path.clone(),
            cpus: match self.cpu_manager_policy.as_str() {
                "static" => Policy::Static,
                _ => Policy::None,
            },
            reserved_cpus: Default::default(),
            memory: match self.memory_manager_policy.as_str() {
                "Static" => memory::Policy::Static,
                _ => memory::Policy::None,
            },
            reserved_memory: memory::parse(&self.reserved_memory.join(";"))
                .map_err(wrong("reserved-memory"))?,
            cpu_options: processors.map_err(wrong("cpu-manager-policy-options"))?,
            topology: self.topology(closeness.map_err(wrong("topology-manager-policy-options"))?),
            gates,
            enforce: self.enforce_node_allocatable == "pods",
            sysctls: Allowed::parse(&self.allowed_unsafe_sysctls).map_err(wrong("allowed-unsafe-sysctls"))?,
            seccomp_default: self.seccomp_default,
            shutdown: Shutdown {
                grace: time("shutdown-grace-period", &self.shutdown_grace_period)?,
                critical: time(
                    "shutdown-grace-period-critical-pods",
                    &self.shutdown_grace_period_critical_pods,
                )?,
            },
        };
        agent.reserve(set::parse(&self.reserved_cpus).map_err(wrong("reserved-cpus"))?);
        Ok(agent)
    }
}
