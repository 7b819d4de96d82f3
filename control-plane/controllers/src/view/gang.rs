//! Pods that are placed together.

use kube::core::ObjectMeta;
use serde::Deserialize;

use crate::cache::Cached;

/// A PodGroup of `scheduling.k8s.io/v1alpha2`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodGroup {
    #[serde(deserialize_with = "super::slim")]
    pub metadata: ObjectMeta,
    #[serde(default)]
    pub spec: PodGroupSpec,
}

/// How its pods are placed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodGroupSpec {
    pub scheduling_policy: SchedulingPolicy,
}

/// Each by itself, or as a gang.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SchedulingPolicy {
    pub gang: Option<GangPolicy>,
}

/// None is placed unless so many have a place at the same time.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GangPolicy {
    pub min_count: usize,
}

impl PodGroup {
    /// How many pods of the group must have a place at the same time; none where each is placed by itself.
    pub fn min_count(&self) -> Option<usize> {
        self.spec.scheduling_policy.gang.map(|gang| gang.min_count)
    }
}

impl Cached for PodGroup {}
