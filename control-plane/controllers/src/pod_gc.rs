//! Pods that nobody else cleans up: too many finished ones, those deleted before they had a node, and those of nodes that
//! an administrator has declared out of service.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::cache::Key;
use crate::informers::Informers;
use crate::pod_control::{Victim, victim};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{Meta, Node, Pod};
use crate::write::{self, Delete, Writer};

const PERIOD: Duration = Duration::from_secs(20);
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Removes pods.
pub struct PodCollector {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
    /// The most finished pods that are kept.
    threshold: usize,
}

impl PodCollector {
    /// Keeps at most `threshold` finished pods; 0 keeps all.
    pub fn new(caches: Arc<Informers>, writer: Writer, threshold: usize) -> Arc<Self> {
        let queue = WorkQueue::new();
        queue.add("all");
        Arc::new(Self { caches, writer, queue, threshold })
    }
}

/// The pods to remove: namespace, and name with uid.
fn superfluous(pods: &[Arc<Pod>], nodes: &[Arc<Node>], threshold: usize) -> Vec<(String, Victim)> {
    let named = |p: &Arc<Pod>| (p.namespace().to_string(), victim(p));
    let out = |p: &Arc<Pod>| {
        let node = nodes.iter().find(|n| Some(n.name()) == p.node());
        node.is_some_and(|n| n.spec.taints.iter().any(|t| t.key == OUT_OF_SERVICE))
    };
    let dead = pods.iter().filter(|p| p.is_terminating() && (p.node().is_none() || out(p)));
    let mut gone: Vec<_> = dead.map(named).collect();
    let mut ended: Vec<&Arc<Pod>> = pods.iter().filter(|p| p.is_finished() && !p.is_terminating()).collect();
    if threshold > 0 && ended.len() > threshold {
        ended.sort_by_key(|p| (p.created(), p.name().to_string()));
        gone.extend(ended.iter().take(ended.len() - threshold).map(|p| named(p)));
    }
    gone
}

#[async_trait]
impl Reconciler for PodCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    fn workers(&self) -> usize {
        1
    }

    async fn reconcile(&self, _: &Key) -> anyhow::Result<Option<Duration>> {
        let gone = superfluous(&self.caches.pods.all(), &self.caches.nodes.all(), self.threshold);
        for (namespace, (name, uid)) in gone {
            let how = Delete { uid: Some(&uid), grace: Some(0), ..Delete::default() };
            match self.writer.delete(&write::path::<Pod>(&namespace, &name), how).await {
                Err(error) if !write::is_conflict(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(Some(PERIOD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_finished_and_the_forsaken_go() {
        let pod = |name: &str, phase: &str, second: i64, deleted: bool, node: &str| -> Arc<Pod> {
            let at = crate::events::api_time(jiff::Timestamp::from_second(second).unwrap());
            let deletion = deleted.then(|| at.clone());
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": { "name": name, "creationTimestamp": at, "deletionTimestamp": deletion },
                    "spec": { "nodeName": node }, "status": { "phase": phase },
                }))
                .unwrap(),
            )
        };
        let pods = [
            pod("old", "Failed", 1, false, "n"),
            pod("new", "Succeeded", 2, false, "n"),
            pod("runs", "Running", 1, false, "n"),
            pod("unbound", "Pending", 1, true, ""),
            pod("lost", "Running", 1, true, "out"),
        ];
        let out = json!({ "metadata": { "name": "out" }, "spec": { "taints": [{ "key": OUT_OF_SERVICE, "effect": "NoExecute" }] } });
        let nodes = [Arc::new(serde_json::from_value(out).unwrap())];
        let gone = |threshold| {
            superfluous(&pods, &nodes, threshold).into_iter().map(|(_, (name, _))| name).collect::<Vec<_>>()
        };
        assert_eq!(gone(1), ["unbound", "lost", "old"]);
        assert_eq!(gone(0), ["unbound", "lost"]);
    }
}
