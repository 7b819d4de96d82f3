//! The kinds NodeMetrics and PodMetrics, computed when they are asked for.

use std::sync::Arc;

use coracle_apiserver::{ResourceDef, Strategy};
use coracle_controllers::cache::Cache;
use coracle_controllers::view::{Meta, Node};
use kube::Resource;
use serde_json::{Value, json};

use crate::scrape::PodMeta;
use crate::usage::Usage;

const GROUP: &str = "metrics.k8s.io";

/// What the kinds are computed from. Clones share it.
#[derive(Clone, Default)]
pub struct Objects {
    pub usage: Usage,
    pub nodes: Arc<Cache<Node>>,
    pub pods: Arc<Cache<PodMeta>>,
}

/// The resources, over what [`crate::run`] fills.
pub fn resources(objects: &Objects) -> Vec<ResourceDef> {
    let (nodes, pods) = (NodeMetrics(objects.clone()), PodMetrics(objects.clone()));
    vec![
        ResourceDef::new(GROUP, "v1beta1", "NodeMetrics", "nodes", Arc::new(nodes))
            .cluster_scoped()
            .verbs(&["get", "list"]),
        ResourceDef::new(GROUP, "v1beta1", "PodMetrics", "pods", Arc::new(pods)).verbs(&["get", "list"]),
    ]
}

fn meta<K: Resource>(object: &K) -> Value {
    let from = object.meta();
    let mut meta = json!({ "name": from.name, "creationTimestamp": from.creation_timestamp });
    if let Some(namespace) = &from.namespace {
        meta["namespace"] = namespace.as_str().into();
    }
    if let Some(labels) = &from.labels {
        meta["labels"] = json!(labels);
    }
    meta
}

struct NodeMetrics(Objects);

impl Strategy for NodeMetrics {
    fn computed(&self, _namespace: Option<&str>) -> Option<Vec<Value>> {
        let mut nodes = self.0.nodes.all();
        nodes.sort_by(|a, b| a.name().cmp(b.name()));
        Some(nodes.iter().filter_map(|node| self.0.usage.node(node.name(), meta(node.as_ref()))).collect())
    }
}

struct PodMetrics(Objects);

impl Strategy for PodMetrics {
    fn computed(&self, namespace: Option<&str>) -> Option<Vec<Value>> {
        let names = self.0.usage.pods(namespace).into_iter();
        let pods = names.filter_map(|(namespace, name)| {
            // A pod that is gone uses nothing, even if its node said so a moment ago.
            let pod = self.0.pods.get(&format!("{namespace}/{name}"))?;
            self.0.usage.pod(&namespace, &name, meta(pod.as_ref()))
        });
        Some(pods.collect())
    }
}
