//! Writes the status of budgets.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use serde_json::json;

use super::plan::status;
use crate::cache::{Key, key, key_of};
use crate::informers::Informers;
use crate::ownership::matches;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::scale::Scales;
use crate::view::{Meta, Pod, PodDisruptionBudget};
use crate::write::{self, Writer};

/// Keeps budgets up to date.
pub struct DisruptionController {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
    scales: Scales,
}

impl DisruptionController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self {
            caches: caches.clone(),
            scales: Scales::new(writer.clone()),
            writer,
            queue: WorkQueue::new(),
        });
        let own = this.clone();
        caches.budgets.on_change(move |_, new| {
            new.into_iter().for_each(|budget| own.queue.add(key_of(budget.as_ref())));
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            for pod in old.into_iter().chain(new) {
                for budget in own.caches.budgets.by(&format!("namespace:{}", pod.namespace())) {
                    if selector(&budget).is_some_and(|s| matches(&s, pod.as_ref())) {
                        own.queue.add(key_of(budget.as_ref()));
                    }
                }
            }
        });
        this
    }

    // How many pods the owners of these pods want, each owner counted once.
    async fn expected(&self, pods: &[Arc<Pod>]) -> i64 {
        let mut wanted: HashMap<String, i64> = HashMap::new();
        for pod in pods {
            let Some(owner) = pod.controller() else { continue };
            let at = key(pod.namespace(), &owner.name);
            let (uid, replicas) = match owner.kind.as_str() {
                "ReplicaSet" => {
                    let Some(rs) = self.caches.replica_sets.get(&at) else { continue };
                    let parent = rs.controller().filter(|o| o.kind == "Deployment");
                    let parent =
                        parent.and_then(|o| self.caches.deployments.get(&key(pod.namespace(), &o.name)));
                    parent.map_or_else(
                        || (rs.uid().to_string(), rs.replicas()),
                        |d| (d.uid().to_string(), d.replicas()),
                    )
                }
                "StatefulSet" => {
                    let Some(set) = self.caches.stateful_sets.get(&at) else { continue };
                    (set.uid().to_string(), set.replicas())
                }
                "ReplicationController" => {
                    let Some(rc) = self.caches.replication_controllers.get(&at) else { continue };
                    (rc.uid().to_string(), rc.spec.replicas.unwrap_or(1))
                }
                // A kind that nobody here knows, with a scale of its own; without one a pod stands for itself.
                _ if wanted.contains_key(&owner.uid) => continue,
                _ => {
                    let scale =
                        self.scales.of(pod.namespace(), &owner.api_version, &owner.kind, &owner.name).await;
                    match scale {
                        Ok(scale) => (owner.uid.clone(), scale.wanted),
                        Err(_) => (pod.uid().to_string(), 1),
                    }
                }
            };
            wanted.insert(uid, replicas);
        }
        wanted.values().sum()
    }
}

// An absent selector matches nothing, an empty one everything (policy/v1).
fn selector(budget: &PodDisruptionBudget) -> Option<Selector> {
    Selector::from_label_selector(budget.spec.selector.as_ref()?).ok()
}

#[async_trait]
impl Reconciler for DisruptionController {
    fn name(&self) -> &'static str {
        "disruption-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(budget) = self.caches.budgets.get(key) else { return Ok(None) };
        let selector = selector(&budget).unwrap_or_else(Selector::nothing);
        let mut pods = self.caches.pods.by(&format!("namespace:{}", budget.namespace()));
        pods.retain(|p| matches(&selector, p.as_ref()));
        let new = status(&budget, &pods, self.expected(&pods).await, Timestamp::now());
        let again = (!new.disrupted_pods.is_empty()).then_some(Duration::from_secs(30));
        if new != budget.status {
            let path =
                format!("{}/status", write::path::<PodDisruptionBudget>(budget.namespace(), budget.name()));
            let mut body = json!({
                "metadata": { "uid": budget.uid(), "resourceVersion": budget.metadata.resource_version }, "status": new,
            });
            for name in budget.status.disrupted_pods.keys().filter(|n| !new.disrupted_pods.contains_key(*n)) {
                body["status"]["disruptedPods"][name] = serde_json::Value::Null;
            }
            match self.writer.merge(&path, &body).await {
                Err(error) if !write::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(again)
    }
}
