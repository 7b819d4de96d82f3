//! The loop: watches pods and nodes, decides one pod after the other, binds many at a time.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::bind;
use crate::cycle::{Snapshot, choose};
use crate::queue::Queue;
use crate::view::{NodeView, PodView};

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pods with this `spec.schedulerName` are ours.
    pub name: String,
    /// Bindings under way at a time.
    pub bindings: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "default-scheduler".to_owned(), bindings: 64 }
    }
}

/// Decisions before events are looked at again.
const BATCH: usize = 256;

struct Scheduler {
    client: Client,
    options: Options,
    snapshot: Snapshot,
    queue: Queue,
    /// Every pod that takes room, with the node that it takes it on: bound ones, and those being bound.
    placed: HashMap<String, (String, PodView)>,
    explained: HashMap<String, String>,
    slots: Arc<Semaphore>,
    failed: mpsc::UnboundedSender<(PodView, String)>,
}

/// Runs until shutdown.
///
/// # Errors
/// None at present: a lost API server is waited for.
pub async fn run(client: Client, options: Options, shutdown: CancellationToken) -> Result<()> {
    let pods = watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff();
    let nodes = watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff();
    let (mut pods, mut nodes) = (pin!(pods), pin!(nodes));
    // Bounded by the semaphore: one entry for each binding under way.
    let (failed, mut failures) = mpsc::unbounded_channel();
    let slots = Arc::new(Semaphore::new(options.bindings));
    let mut scheduler = Scheduler {
        client,
        options,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        placed: HashMap::new(),
        explained: HashMap::new(),
        slots,
        failed,
    };
    let mut listed: Option<HashMap<String, PodView>> = None;
    loop {
        let next = scheduler.queue.tick(Instant::now());
        let more = scheduler.decide();
        let pause = if more {
            Duration::ZERO
        } else {
            next.map_or(Duration::from_secs(60), |at| at.saturating_duration_since(Instant::now()))
        };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some((pod, error)) = failures.recv() => scheduler.unbound(pod, &error),
            event = nodes.next() => match event {
                Some(Ok(event)) => scheduler.node_event(event),
                Some(Err(error)) => tracing::debug!(%error, "watch nodes"),
                None => return Ok(()),
            },
            event = pods.next() => match event {
                Some(Ok(event)) => scheduler.pod_event(event, &mut listed),
                Some(Err(error)) => tracing::debug!(%error, "watch pods"),
                None => return Ok(()),
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Scheduler {
    fn node_event(&mut self, event: watcher::Event<Node>) {
        match event {
            watcher::Event::Apply(node) | watcher::Event::InitApply(node) => {
                if self.snapshot.set_node(NodeView::of(&node)) {
                    self.queue.wake(Instant::now());
                }
            }
            watcher::Event::Delete(node) => {
                self.snapshot.remove_node(node.metadata.name.as_deref().unwrap_or_default())
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }

    fn pod_event(&mut self, event: watcher::Event<Pod>, listed: &mut Option<HashMap<String, PodView>>) {
        match event {
            watcher::Event::Apply(pod) => self.pod(PodView::of(&pod)),
            watcher::Event::Delete(pod) => self.forget(&PodView::of(&pod).key()),
            watcher::Event::Init => *listed = Some(HashMap::new()),
            watcher::Event::InitApply(pod) => {
                let view = PodView::of(&pod);
                if let Some(all) = listed {
                    all.insert(view.key(), view);
                }
            }
            watcher::Event::InitDone => {
                let all = listed.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.placed.keys().filter(|key| !all.contains_key(*key)).cloned().collect();
                for key in gone {
                    self.forget(&key);
                }
                for pod in all.into_values() {
                    self.pod(pod);
                }
            }
        }
    }

    fn pod(&mut self, pod: PodView) {
        let key = pod.key();
        if pod.ended {
            return self.forget(&key);
        }
        if !pod.node.is_empty() {
            self.queue.remove(&key);
            self.explained.remove(&key);
            // It may be on another node than we thought: someone else may bind too.
            if let Some((node, before)) = self.placed.remove(&key) {
                self.snapshot.give_back(&node, &before);
            }
            self.snapshot.take(&pod.node, &pod);
            self.placed.insert(key, (pod.node.clone(), pod));
            return;
        }
        // One that is being bound shows up without its node until the API has it.
        if self.placed.get(&key).is_some_and(|(_, before)| before.uid == pod.uid) {
            return;
        }
        if pod.scheduler != self.options.name || pod.gated || pod.deleting {
            return self.queue.remove(&key);
        }
        // Our own explanation is no change of the pod.
        if !self.explained.contains_key(&key) {
            self.queue.push(pod, Instant::now());
        }
    }

    fn forget(&mut self, key: &str) {
        self.queue.remove(key);
        self.explained.remove(key);
        if let Some((node, pod)) = self.placed.remove(key) {
            self.snapshot.give_back(&node, &pod);
            self.queue.wake(Instant::now());
        }
    }

    /// Decides for some pods. True if there may be more.
    fn decide(&mut self) -> bool {
        for _ in 0..BATCH {
            let Ok(slot) = self.slots.clone().try_acquire_owned() else { return false };
            let Some(pod) = self.queue.pop() else { return false };
            let key = pod.key();
            match choose(&pod, &self.snapshot) {
                Ok(node) => {
                    self.queue.remove(&key);
                    self.snapshot.take(&node, &pod);
                    self.placed.insert(key, (node.clone(), pod.clone()));
                    let (client, failed) = (self.client.clone(), self.failed.clone());
                    tokio::spawn(async move {
                        let bound = bind::bind(&client, &pod, &node).await;
                        drop(slot);
                        let error = bound.err().map(|error| format!("{error:#}"));
                        // An empty text wakes the loop for the slot that is free again.
                        let _ = failed.send((pod, error.unwrap_or_default()));
                    });
                }
                Err(why) => {
                    self.queue.sleep(&key, Instant::now());
                    if self.explained.insert(key, why.clone()).as_ref() != Some(&why) {
                        let client = self.client.clone();
                        tokio::spawn(async move {
                            if let Err(error) = bind::explain(&client, &pod, &why).await {
                                tracing::debug!(
                                    pod = pod.key(),
                                    error = format!("{error:#}"),
                                    "explain why it waits"
                                );
                            }
                            drop(slot);
                        });
                    }
                }
            }
        }
        true
    }

    /// A binding ended; one that failed gives its room back, and the pod is tried again.
    fn unbound(&mut self, pod: PodView, error: &str) {
        if error.is_empty() {
            return;
        }
        tracing::warn!(pod = pod.key(), error, "bind");
        let key = pod.key();
        if let Some((node, before)) = self.placed.remove(&key) {
            if before.uid != pod.uid || !before.node.is_empty() {
                self.placed.insert(key, (node, before));
                return;
            }
            self.snapshot.give_back(&node, &before);
        }
        self.queue.retry(pod, Instant::now());
    }
}
