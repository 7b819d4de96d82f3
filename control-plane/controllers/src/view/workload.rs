//! What keeps pods running: ReplicaSets, Deployments, StatefulSets, DaemonSets.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Condition, Meta};
use crate::cache::{Cached, trim_meta};

/// A ReplicaSet.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ReplicaSet {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ReplicaSetSpec,
    #[serde(default)]
    pub status: ReplicaSetStatus,
}

/// What a ReplicaSet keeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    pub replicas: Option<i64>,
    pub min_ready_seconds: i64,
    pub selector: Value,
    pub template: Arc<Value>,
}

/// What a ReplicaSet has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    pub replicas: i64,
    pub fully_labeled_replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    pub observed_generation: i64,
    pub conditions: Vec<Condition>,
}

impl ReplicaSet {
    /// Wanted pods; 1 when the server has not set its default.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }
}

impl Cached for ReplicaSet {
    fn indices(&self) -> Vec<String> {
        match self.controller() {
            Some(owner) => vec![format!("owner:{}", owner.uid), format!("namespace:{}", self.namespace())],
            None => vec![format!("orphan:{}", self.namespace()), format!("namespace:{}", self.namespace())],
        }
    }
}

/// A Deployment.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Deployment {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: DeploymentSpec,
    #[serde(default)]
    pub status: DeploymentStatus,
}

/// What a Deployment keeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    pub replicas: Option<i64>,
    pub min_ready_seconds: i64,
    pub selector: Value,
    pub template: Arc<Value>,
    pub strategy: Strategy,
    pub paused: bool,
    pub revision_history_limit: Option<i64>,
    pub progress_deadline_seconds: Option<i64>,
}

/// How a Deployment replaces pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub type_: String,
    pub rolling_update: Option<RollingUpdate>,
}

/// How many pods a rolling update may add and miss.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub max_surge: Option<IntOrString>,
    pub max_unavailable: Option<IntOrString>,
}

/// What a Deployment has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    pub replicas: i64,
    pub updated_replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub unavailable_replicas: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating_replicas: Option<i64>,
    pub observed_generation: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
    pub conditions: Vec<Condition>,
}

impl Deployment {
    /// Wanted pods; 1 when the server has not set its default.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }

    /// Whether all old pods go before new ones come.
    pub fn recreates(&self) -> bool {
        self.spec.strategy.type_ == "Recreate"
    }
}

impl Cached for Deployment {
    fn indices(&self) -> Vec<String> {
        vec![format!("namespace:{}", self.namespace())]
    }
}

/// A ReplicationController: a ReplicaSet whose selector is a plain map.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ReplicationController {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ReplicaSetSpec,
    #[serde(default)]
    pub status: ReplicaSetStatus,
}

impl Cached for ReplicationController {
    fn trim(&mut self) {
        trim_meta(&mut self.metadata);
        if self.spec.selector.get("matchLabels").is_none() {
            self.spec.selector = json!({ "matchLabels": self.spec.selector.take() });
        }
    }

    fn indices(&self) -> Vec<String> {
        vec![format!("namespace:{}", self.namespace())]
    }
}

/// A StatefulSet.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct StatefulSet {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: StatefulSetSpec,
    #[serde(default)]
    pub status: StatefulSetStatus,
}

/// What a StatefulSet keeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetSpec {
    pub replicas: Option<i64>,
    pub selector: Value,
    pub template: Arc<Value>,
    pub volume_claim_templates: Vec<Value>,
    pub service_name: String,
    pub pod_management_policy: Option<String>,
    pub update_strategy: StatefulSetStrategy,
    pub revision_history_limit: Option<i64>,
    pub min_ready_seconds: i64,
    pub ordinals: Option<Ordinals>,
    pub persistent_volume_claim_retention_policy: Option<ClaimRetention>,
}

/// How a StatefulSet replaces pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetStrategy {
    #[serde(rename = "type")]
    pub type_: String,
    pub rolling_update: Option<Partition>,
}

/// Which ordinals a rolling update reaches, and how many at a time.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Partition {
    pub partition: Option<i64>,
    pub max_unavailable: Option<IntOrString>,
}

/// The first ordinal.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ordinals {
    pub start: i64,
}

/// What becomes of claims: `Retain` or `Delete`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClaimRetention {
    pub when_deleted: Option<String>,
    pub when_scaled: Option<String>,
}

/// What a StatefulSet has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatefulSetStatus {
    pub observed_generation: i64,
    pub replicas: i64,
    pub ready_replicas: i64,
    pub available_replicas: i64,
    pub current_replicas: i64,
    pub updated_replicas: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_revision: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
}

impl StatefulSet {
    /// Wanted pods; 1 when the server has not set its default.
    pub fn replicas(&self) -> i64 {
        self.spec.replicas.unwrap_or(1)
    }

    /// The first ordinal.
    pub fn start(&self) -> i64 {
        self.spec.ordinals.as_ref().map_or(0, |o| o.start)
    }
}

impl Cached for StatefulSet {
    fn indices(&self) -> Vec<String> {
        vec![format!("namespace:{}", self.namespace())]
    }
}

/// A DaemonSet.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DaemonSet {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: DaemonSetSpec,
    #[serde(default)]
    pub status: DaemonSetStatus,
}

/// What a DaemonSet keeps.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetSpec {
    pub selector: Value,
    pub template: Arc<Value>,
    pub update_strategy: Strategy,
    pub min_ready_seconds: i64,
    pub revision_history_limit: Option<i64>,
}

/// What a DaemonSet has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonSetStatus {
    pub observed_generation: i64,
    pub current_number_scheduled: i64,
    pub number_misscheduled: i64,
    pub desired_number_scheduled: i64,
    pub number_ready: i64,
    pub updated_number_scheduled: i64,
    pub number_available: i64,
    pub number_unavailable: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collision_count: Option<i64>,
}

impl Cached for DaemonSet {
    fn indices(&self) -> Vec<String> {
        vec![format!("namespace:{}", self.namespace())]
    }
}

/// A ControllerRevision: a template as it once was.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ControllerRevision {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub data: Arc<Value>,
    #[serde(default)]
    pub revision: i64,
}

impl Cached for ControllerRevision {
    fn indices(&self) -> Vec<String> {
        match self.controller() {
            Some(owner) => vec![format!("owner:{}", owner.uid)],
            None => vec![format!("orphan:{}", self.namespace())],
        }
    }
}
