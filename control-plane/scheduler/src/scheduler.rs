//! The loop: changes go into the snapshot and the queue, decisions come out and are bound concurrently.

use std::sync::Arc;

use coracle_controllers::cache::{Cache, Key, key_of};
use coracle_controllers::events::{Recorder, api_time};
use coracle_controllers::view::{Meta, Node, Pod, condition};
use coracle_controllers::write::{self, Writer};
use jiff::Timestamp;
use kube::runtime::watcher::Config;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::cycle::decide;
use crate::demand::Demand;
use crate::queue::Queue;
use crate::snapshot::Snapshot;

/// How the scheduler runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// It takes pods with this `spec.schedulerName`.
    pub name: String,
    /// Bindings that may be on their way at a time.
    pub concurrency: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { name: "default-scheduler".into(), concurrency: 256 }
    }
}

enum Change {
    Node(Option<Arc<Node>>, Option<Arc<Node>>),
    Pod(Option<Arc<Pod>>, Option<Arc<Pod>>),
}

/// Changes that the watches saw and the loop has not: never more than there are changes, taken all at once.
#[derive(Default)]
struct Inbox {
    changes: Mutex<Vec<Change>>,
    filled: Notify,
}

impl Inbox {
    fn put(&self, change: Change) {
        self.changes.lock().push(change);
        self.filled.notify_one();
    }
}

struct Bound {
    pod: Arc<Pod>,
    node: String,
    answer: write::Result<()>,
}

/// Schedules until `shutdown`. Pods, nodes, bindings and events go through `client`.
pub async fn run(client: kube::Client, options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (inbox, pods, nodes) = (Arc::new(Inbox::default()), Arc::new(Cache::<Pod>::default()), Arc::new(Cache::<Node>::default()));
    let to = inbox.clone();
    nodes.on_change(move |old, new| to.put(Change::Node(old.cloned(), new.cloned())));
    let to = inbox.clone();
    pods.on_change(move |old, new| to.put(Change::Pod(old.cloned(), new.cloned())));
    tokio::spawn(nodes.clone().follow(client.clone(), Config::default(), shutdown.clone()));
    tokio::spawn(pods.clone().follow(client.clone(), Config::default(), shutdown.clone()));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        _ = async { tokio::join!(nodes.synced(), pods.synced()) } => {}
    }
    let writer = Writer::new(client);
    let (answers, bound) = mpsc::unbounded_channel();
    let scheduler = Scheduler {
        events: Recorder::new(writer.clone(), &options.name),
        writer,
        permits: Arc::new(Semaphore::new(options.concurrency.max(1))),
        name: options.name,
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        answers,
        turn: 0,
    };
    scheduler.serve(&inbox, bound, shutdown).await;
    Ok(())
}

struct Scheduler {
    name: String,
    writer: Writer,
    events: Recorder,
    snapshot: Snapshot,
    queue: Queue,
    permits: Arc<Semaphore>,
    answers: mpsc::UnboundedSender<Bound>,
    turn: usize,
}

impl Scheduler {
    async fn serve(mut self, inbox: &Inbox, mut bound: mpsc::UnboundedReceiver<Bound>, shutdown: CancellationToken) {
        loop {
            for change in std::mem::take(&mut *inbox.changes.lock()) {
                self.take(change);
            }
            while let Ok(answer) = bound.try_recv() {
                self.answered(answer);
            }
            // A permit is held from the decision to the answer, so decisions never run far ahead of the API server.
            let free = self.permits.clone().try_acquire_owned();
            if let Ok(permit) = free {
                if let Some(pod) = self.queue.pop() {
                    self.schedule(pod, permit);
                    continue;
                }
            }
            let wake = self.queue.next_wake();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = inbox.filled.notified() => {}
                answer = bound.recv() => if let Some(answer) = answer { self.answered(answer) },
                () = async { tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now)).await }, if wake.is_some() => {}
            }
        }
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::Node(_, Some(node)) => {
                self.snapshot.set_node(node);
                self.queue.wake_unschedulable();
            }
            Change::Node(Some(node), None) => self.snapshot.remove_node(node.name()),
            Change::Node(None, None) | Change::Pod(None, None) => {}
            Change::Pod(Some(pod), None) => self.pod_gone(&pod),
            Change::Pod(old, Some(pod)) => {
                if let Some(old) = old.filter(|old| old.uid() != pod.uid()) {
                    self.pod_gone(&old);
                }
                self.pod_changed(pod);
            }
        }
    }

    fn pod_gone(&mut self, pod: &Pod) {
        let key = key_of(pod);
        self.queue.remove(&key);
        if self.snapshot.unplace(&key) {
            self.queue.wake_unschedulable();
        }
    }

    fn pod_changed(&mut self, pod: Arc<Pod>) {
        if pod.is_finished() {
            self.pod_gone(&pod);
        } else if let Some(node) = pod.node().map(String::from) {
            self.queue.remove(&key_of(pod.as_ref()));
            self.snapshot.place(Demand::new(pod), &node);
        } else if pod.is_terminating() {
            self.pod_gone(&pod);
        } else if !self.snapshot.is_placed(&pod)
            && pod.spec.scheduler_name.as_deref().unwrap_or("default-scheduler") == self.name
            && pod.spec.scheduling_gates.is_empty()
        {
            self.queue.add(pod);
        }
    }

    fn schedule(&mut self, pod: Arc<Pod>, permit: tokio::sync::OwnedSemaphorePermit) {
        let demand = Demand::new(pod.clone());
        self.turn = self.turn.wrapping_add(1);
        match decide(&demand, &self.snapshot, self.turn) {
            Ok(node) => {
                self.snapshot.place(demand, &node);
                let (writer, answers) = (self.writer.clone(), self.answers.clone());
                tokio::spawn(async move {
                    let answer = bind(&writer, &pod, &node).await;
                    drop(permit);
                    // The loop is gone only at shutdown.
                    let _ = answers.send(Bound { pod, node, answer });
                });
            }
            Err(why) => {
                self.queue.unschedulable(&key_of(pod.as_ref()));
                self.events.warning(pod.as_ref(), "FailedScheduling", why.clone());
                self.say_unschedulable(pod, why, permit);
            }
        }
    }

    fn say_unschedulable(&self, pod: Arc<Pod>, why: String, permit: tokio::sync::OwnedSemaphorePermit) {
        let writer = self.writer.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let before = condition(&pod.status.conditions, "PodScheduled").filter(|c| c.status == "False");
            let since = before.and_then(|c| c.last_transition_time.as_ref()).map_or_else(Timestamp::now, |t| t.0);
            let body = json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
                "lastProbeTime": null, "lastTransitionTime": api_time(since),
            }] } });
            let path = format!("{}/status", write::path::<Pod>(pod.namespace(), pod.name()));
            match writer.strategic(&path, &body).await {
                Err(error) if !write::is_not_found(&error) && !write::is_conflict(&error) => {
                    tracing::warn!(pod = &*key_of(pod.as_ref()), %error, "cannot write why a pod is unschedulable");
                }
                _ => {}
            }
        });
    }

    fn answered(&mut self, Bound { pod, node, answer }: Bound) {
        let key: Key = key_of(pod.as_ref());
        match answer {
            Ok(()) => {
                self.queue.remove(&key);
                self.events.normal(pod.as_ref(), "Scheduled", format!("Successfully assigned {key} to {node}"));
            }
            Err(error) => {
                self.snapshot.unplace(&key);
                if write::is_not_found(&error) {
                    self.queue.remove(&key);
                    return;
                }
                // A conflict means that somebody else bound it or changed it: the watch will tell.
                tracing::debug!(pod = &*key, %node, %error, "cannot bind");
                self.queue.retry(&key);
            }
        }
    }
}

async fn bind(writer: &Writer, pod: &Pod, node: &str) -> write::Result<()> {
    let path = format!("{}/binding", write::path::<Pod>(pod.namespace(), pod.name()));
    let body = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": { "name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid() },
        "target": { "apiVersion": "v1", "kind": "Node", "name": node },
    });
    writer.create(&path, &body).await.map(drop)
}
