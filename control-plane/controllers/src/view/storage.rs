//! Storage: volumes, claims and classes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, ObjectReference};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Condition, Meta};
use crate::cache::Cached;

/// A PersistentVolume.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PersistentVolume {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PersistentVolumeSpec,
    #[serde(default)]
    pub status: PhaseStatus,
}

/// What a volume is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersistentVolumeSpec {
    pub capacity: BTreeMap<String, String>,
    pub access_modes: Vec<String>,
    pub storage_class_name: Option<String>,
    pub volume_mode: Option<String>,
    pub persistent_volume_reclaim_policy: Option<String>,
    pub claim_ref: Option<ObjectReference>,
    pub node_affinity: Option<VolumeNodeAffinity>,
    pub csi: Option<CsiVolume>,
}

/// A volume of a CSI driver.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CsiVolume {
    pub driver: String,
    pub volume_handle: String,
}

/// The CSI drivers of a node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct CsiNode {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: CsiNodeSpec,
}

/// The drivers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CsiNodeSpec {
    pub drivers: Vec<CsiNodeDriver>,
}

/// A driver, and how many volumes it attaches.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct CsiNodeDriver {
    pub name: String,
    pub allocatable: Option<VolumeCount>,
}

/// How many volumes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct VolumeCount {
    pub count: Option<i64>,
}

impl Cached for CsiNode {}

/// Where a volume can be reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct VolumeNodeAffinity {
    pub required: Option<NodeSelector>,
}

/// A phase and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhaseStatus {
    pub phase: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

impl Cached for PersistentVolume {
    fn indices(&self) -> Vec<String> {
        let claim = self.spec.claim_ref.as_ref();
        let claim = claim.map(|c| {
            format!(
                "claim:{}/{}",
                c.namespace.as_deref().unwrap_or_default(),
                c.name.as_deref().unwrap_or_default()
            )
        });
        claim.into_iter().collect()
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PersistentVolumeClaim {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PersistentVolumeClaimSpec,
    #[serde(default)]
    pub status: PersistentVolumeClaimStatus,
}

/// What a claim asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PersistentVolumeClaimSpec {
    pub access_modes: Vec<String>,
    pub resources: super::Resources,
    pub storage_class_name: Option<String>,
    pub volume_mode: Option<String>,
    pub volume_name: Option<String>,
    pub selector: Option<Value>,
}

/// What a claim got.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PersistentVolumeClaimStatus {
    pub phase: Option<String>,
    pub capacity: BTreeMap<String, String>,
    pub conditions: Vec<Condition>,
}

impl PersistentVolumeClaim {
    /// The volume it is bound to.
    pub fn volume(&self) -> Option<&str> {
        self.spec.volume_name.as_deref().filter(|v| !v.is_empty())
    }
}

impl Cached for PersistentVolumeClaim {
    fn indices(&self) -> Vec<String> {
        vec![format!("namespace:{}", self.namespace())]
    }
}

/// A StorageClass.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StorageClass {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub provisioner: String,
    #[serde(default)]
    pub parameters: BTreeMap<String, String>,
    #[serde(default)]
    pub reclaim_policy: Option<String>,
    #[serde(default)]
    pub volume_binding_mode: Option<String>,
}

impl Cached for StorageClass {}

/// A CSIDriver.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct CsiDriver {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: CsiDriverSpec,
}

/// What a driver needs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CsiDriverSpec {
    pub attach_required: Option<bool>,
}

impl Cached for CsiDriver {}

/// A VolumeAttachment.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct VolumeAttachment {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: VolumeAttachmentSpec,
    #[serde(default)]
    pub status: VolumeAttachmentStatus,
}

/// What is to be attached where.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeAttachmentSpec {
    pub attacher: String,
    pub node_name: String,
    pub source: VolumeAttachmentSource,
}

/// The volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeAttachmentSource {
    pub persistent_volume_name: Option<String>,
}

/// What the attacher says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VolumeAttachmentStatus {
    pub attached: bool,
    pub attach_error: Option<VolumeError>,
}

/// Why something failed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct VolumeError {
    pub message: String,
}

impl VolumeAttachment {
    /// The PersistentVolume; empty for an inline volume.
    pub fn volume(&self) -> &str {
        self.spec.source.persistent_volume_name.as_deref().unwrap_or_default()
    }
}

impl Cached for VolumeAttachment {
    fn indices(&self) -> Vec<String> {
        vec![format!("node:{}", self.spec.node_name), format!("volume:{}", self.volume())]
    }
}

/// A volume that is attached to a node, in the node's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AttachedVolume {
    pub name: String,
    pub device_path: String,
}
