//! Pods.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Affinity, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::ObjectMeta;
use serde::Deserialize;

use super::{Condition, Meta, condition};
use crate::cache::{Cached, trim_meta};

/// Annotation that says which index of a Job a pod works on.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The annotations that somebody here reads.
const KEPT: [&str; 4] = [
    "controller.kubernetes.io/pod-deletion-cost",
    COMPLETION_INDEX,
    "batch.kubernetes.io/job-index-failure-count",
    "batch.kubernetes.io/job-index-ignored-failure-count",
];

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

/// What scheduling, endpoints and controllers read of a pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: Option<String>,
    pub scheduler_name: Option<String>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub affinity: Option<Box<Affinity>>,
    pub tolerations: Vec<Toleration>,
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub overhead: Option<BTreeMap<String, String>>,
    pub host_network: Option<bool>,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    pub priority: Option<i32>,
    pub scheduling_gates: Vec<SchedulingGate>,
    pub restart_policy: Option<String>,
    pub priority_class_name: Option<String>,
    pub active_deadline_seconds: Option<i64>,
    pub volumes: Vec<Volume>,
    pub resource_claims: Vec<PodResourceClaim>,
}

/// A claim of devices: one that is there, or one that is made from a template.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodResourceClaim {
    pub name: String,
    pub resource_claim_name: Option<String>,
    pub resource_claim_template_name: Option<String>,
}

/// Which claim was made for an entry of the pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodResourceClaimStatus {
    pub name: String,
    pub resource_claim_name: Option<String>,
}

/// A volume, as far as claims go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    pub name: String,
    pub persistent_volume_claim: Option<ClaimSource>,
    /// A claim made for this pod alone, named `<pod>-<volume>`.
    pub ephemeral: Option<serde::de::IgnoredAny>,
}

/// The claim behind a volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimSource {
    pub claim_name: String,
}

/// Something that must be removed before a pod is scheduled.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SchedulingGate {
    pub name: String,
}

/// A container's requests and ports.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub resources: Resources,
    pub ports: Vec<ContainerPort>,
    pub restart_policy: Option<String>,
}

/// Requests and limits as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Resources {
    pub requests: Option<BTreeMap<String, String>>,
    pub limits: Option<BTreeMap<String, String>>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: Option<String>,
    pub container_port: i32,
    pub host_port: Option<i32>,
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    pub protocol: Option<String>,
}

/// What a node says of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: Option<String>,
    pub conditions: Vec<Condition>,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    pub container_statuses: Vec<ContainerStatus>,
    pub init_container_statuses: Vec<ContainerStatus>,
    pub reason: Option<String>,
    pub start_time: Option<Time>,
    pub nominated_node_name: Option<String>,
    pub resource_claim_statuses: Vec<PodResourceClaimStatus>,
}

/// One address of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodIp {
    pub ip: String,
}

/// How often a container restarted, and how it ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub restart_count: i32,
    pub state: ContainerState,
}

/// What a container does now.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub terminated: Option<Terminated>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    pub exit_code: i32,
    pub finished_at: Option<Time>,
}

impl Pod {
    /// Phase; `Pending` until a node says otherwise.
    pub fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap_or("Pending")
    }

    /// Whether all its containers are done for ever.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// Whether it counts for a controller: neither finished nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.is_finished() && !self.is_terminating()
    }

    /// Since when it is ready; `None` when it is not.
    pub fn ready_since(&self) -> Option<Timestamp> {
        let ready = condition(&self.status.conditions, "Ready").filter(|c| c.status == "True")?;
        Some(ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0))
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready_since().is_some()
    }

    /// Whether it has been ready for `min_ready_seconds`.
    pub fn is_available(&self, min_ready_seconds: i64, now: Timestamp) -> bool {
        self.ready_since().is_some_and(|t| {
            min_ready_seconds == 0 || now.as_millisecond() - t.as_millisecond() >= min_ready_seconds * 1000
        })
    }

    /// Whether a finalizer holds it.
    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|f| f == finalizer)
    }

    /// When its last container ended; its deletion where no container says.
    pub fn finished_at(&self) -> Option<Timestamp> {
        let ended = self.status.container_statuses.iter();
        let ended = ended.filter_map(|c| Some(c.state.terminated.as_ref()?.finished_at.as_ref()?.0)).max();
        ended.or_else(|| self.metadata.deletion_timestamp.as_ref().map(|t| t.0))
    }

    /// Names of the claims that its volumes use, those made for it included.
    pub fn claims(&self) -> Vec<String> {
        let claim = |volume: &Volume| match &volume.persistent_volume_claim {
            Some(claim) => Some(claim.claim_name.clone()),
            None => volume.ephemeral.as_ref().map(|_| format!("{}-{}", self.name(), volume.name)),
        };
        self.spec.volumes.iter().filter_map(claim).collect()
    }

    /// The node it is bound to.
    pub fn node(&self) -> Option<&str> {
        self.spec.node_name.as_deref().filter(|n| !n.is_empty())
    }
}

impl Cached for Pod {
    fn trim(&mut self) {
        trim_meta(&mut self.metadata);
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|k, _| KEPT.contains(&k.as_str()));
        }
        for condition in &mut self.status.conditions {
            condition.message = String::new();
            condition.last_heartbeat_time = None;
        }
        self.spec.tolerations.shrink_to_fit();
        self.spec.volumes.retain(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
        self.spec.volumes.shrink_to_fit();
    }

    fn indices(&self) -> Vec<String> {
        let mut indices = vec![format!("namespace:{}", self.namespace())];
        match self.controller() {
            Some(owner) => indices.push(format!("owner:{}", owner.uid)),
            None => indices.push(format!("orphan:{}", self.namespace())),
        }
        if let Some(node) = self.node() {
            indices.push(format!("node:{node}"));
        }
        indices.extend(self.claims().iter().map(|claim| format!("claim:{}/{claim}", self.namespace())));
        indices
    }
}
