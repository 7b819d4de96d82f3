//! Carries out the plan of a DaemonSet.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_api::labels::Selector;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::back_off::BackOffs;
use super::plan::{State, plan, pod};
use crate::cache::{Key, key_of};
use crate::events::Recorder;
use crate::history::{self, REVISION_HASH};
use crate::informers::Informers;
use crate::pod_control::PodControl;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{DaemonSet, Meta, Node};
use crate::write::Writer;

/// Keeps DaemonSets.
pub struct DaemonSetController {
    pods: Arc<PodControl>,
    back_offs: Mutex<BackOffs>,
}

impl DaemonSetController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer, events: Recorder) -> Arc<Self> {
        let pods = PodControl::new::<DaemonSet>(caches.clone(), writer, events);
        let this = Arc::new(Self { pods, back_offs: Mutex::default() });
        let own = this.clone();
        caches.nodes.on_change(move |old, new| {
            // Heartbeats change no placement.
            if !old.zip(new).is_some_and(|(old, new)| same_place(old, new)) {
                own.pods
                    .caches()
                    .daemon_sets
                    .all()
                    .iter()
                    .for_each(|set| own.pods.queue.add(key_of(set.as_ref())));
            }
        });
        this
    }

    async fn revisions(&self, set: &DaemonSet) -> anyhow::Result<Vec<Arc<crate::view::ControllerRevision>>> {
        let collisions = set.status.collision_count.unwrap_or(0);
        history::sync(self.pods.caches(), self.pods.writer(), set, &set.spec.template, collisions).await
    }
}

fn same_place(old: &Node, new: &Node) -> bool {
    old.metadata.labels == new.metadata.labels
        && old.spec.taints == new.spec.taints
        && old.spec.unschedulable == new.spec.unschedulable
}

#[async_trait]
impl Reconciler for DaemonSetController {
    fn name(&self) -> &'static str {
        "daemon-set-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.pods.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let settled = self.pods.expectations.settled(key);
        let Some(set) = self.pods.caches().daemon_sets.get(key) else {
            self.back_offs.lock().forget(key);
            return Ok(None);
        };
        let selector =
            Selector::from_label_selector(&set.spec.selector).map_err(|s| anyhow::anyhow!("{s:?}"))?;
        if selector.is_everything() {
            let words = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.pods.events().warning(set.as_ref(), "SelectingAll", words);
            return Ok(None);
        }
        let revisions = self.revisions(&set).await?;
        let hash = revisions.last().map(|r| history::hash_of(r).to_string()).unwrap_or_default();
        let pods = self.pods.claimed(set.as_ref(), &selector).await?;
        let (nodes, now) = (self.pods.caches().nodes.all(), Timestamp::now());
        let (waiting, failed_wait) = self.back_offs.lock().waiting(key, Instant::now());
        let state =
            State { set: &set, nodes: &nodes, pods: &pods, hash: &hash, settled, waiting: &waiting, now };
        let plan = plan(&state);
        for (node, pod) in &plan.failed {
            self.back_offs.lock().replaced(key, node, Instant::now());
            let words = format!(
                "Found failed daemon pod {}/{pod} on node {node}, will try to kill it",
                set.namespace()
            );
            self.pods.events().warning(set.as_ref(), "FailedDaemonPod", words);
        }
        let created: BTreeSet<&String> = plan.created.iter().collect();
        let bodies = created.iter().map(|node| pod(&set, &hash, node)).collect::<Vec<_>>();
        let deleted: BTreeSet<_> = plan.deleted.into_iter().collect();
        let done = if bodies.is_empty() { Ok(()) } else { self.pods.create(key, set.as_ref(), bodies).await };
        let gone = if deleted.is_empty() {
            Ok(())
        } else {
            self.pods.delete(key, set.as_ref(), deleted.into_iter().collect()).await
        };
        if plan.status != set.status {
            self.pods.writer().status(set.as_ref(), json!(plan.status)).await?;
        }
        done?;
        gone?;
        let mut live: HashSet<String> = pods
            .iter()
            .filter_map(|p| p.label(REVISION_HASH))
            .flat_map(|h| revisions.iter().filter(move |r| history::hash_of(r) == h))
            .map(|r| r.name().to_string())
            .collect();
        live.extend(revisions.last().map(|r| r.name().to_string()));
        let limit = set.spec.revision_history_limit;
        history::truncate(self.pods.writer(), set.namespace(), &revisions, &live, limit).await?;
        let unavailable = plan.status.number_unavailable > 0 && set.spec.min_ready_seconds > 0;
        Ok(unavailable.then_some(Duration::from_secs(1)).into_iter().chain(failed_wait).min())
    }
}
