//! The part of `networking.internal.knative.dev/v1alpha1` Ingress that a gateway reads: Knative's seam between its
//! routes and whatever carries them.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// What hosts lead to which Services, in which shares.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "Ingress",
    plural = "ingresses",
    namespaced,
    schema = "disabled"
)]
#[kube(root = "KnativeIngress")]
#[serde(rename_all = "camelCase", default)]
pub struct KnativeIngressSpec {
    pub rules: Vec<Rule>,
}

/// The paths of some hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub hosts: Vec<String>,
    pub http: Http,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Http {
    pub paths: Vec<Path>,
}

/// A prefix of paths; an absent one means all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Path {
    pub path: Option<String>,
    pub splits: Vec<Split>,
}

/// A share of the requests. The shares of a path add up to 100.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Split {
    pub service_namespace: String,
    pub service_name: String,
    pub service_port: i32,
    pub percent: i32,
}
