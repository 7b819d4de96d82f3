//! Devices that drivers offer and pods claim (`resource.k8s.io`).

use k8s_openapi::api::resource::v1::{
    DeviceClassSpec, ResourceClaimSpec, ResourceClaimStatus, ResourceSliceSpec,
};
use kube::core::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::Meta;
use crate::cache::Cached;

/// A ResourceClaim.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ResourceClaim {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ResourceClaimSpec,
    #[serde(default)]
    pub status: ResourceClaimStatus,
}

impl ResourceClaim {
    /// Whether it is reserved for the pod (or whatever else) of this uid.
    pub fn is_reserved_for(&self, uid: &str) -> bool {
        self.status.reserved_for.iter().flatten().any(|user| user.uid == uid)
    }
}

impl Cached for ResourceClaim {
    fn indices(&self) -> Vec<String> {
        let owner = self.controller().map(|owner| format!("owner:{}", owner.uid));
        let users = self.status.reserved_for.iter().flatten().map(|user| format!("user:{}", user.uid));
        users.chain(owner).collect()
    }
}

/// A ResourceClaimTemplate; what claims are made from stays as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ResourceClaimTemplate {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: Value,
}

impl Cached for ResourceClaimTemplate {}

/// A ResourceSlice.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ResourceSlice {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: ResourceSliceSpec,
}

impl Cached for ResourceSlice {}

/// A DeviceClass.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DeviceClass {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: DeviceClassSpec,
}

impl Cached for DeviceClass {}
