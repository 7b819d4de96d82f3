//! The pods of a node: one worker each, fed by a watch of the API and by the runtime's events.

pub mod config;
pub mod plan;
pub mod status;
pub mod worker;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::{mpsc, watch};

use crate::Shared;
use crate::cri::POD_UID;

const RETRY: Duration = Duration::from_millis(500);

/// What a worker is told.
#[derive(Clone)]
pub struct Input {
    /// The pod as the API has it; `None` once it is gone there.
    pub pod: Option<Arc<Pod>>,
    /// Raised when something else may have changed: a container of the pod, a ConfigMap, a probe.
    pub nudge: u64,
}

struct Worker {
    input: watch::Sender<Input>,
}

/// Runs for ever.
pub async fn run(shared: Arc<Shared>) {
    let mut workers: HashMap<String, Worker> = HashMap::new();
    let (done, mut finished) = mpsc::channel::<String>(256);
    let (nudge, mut nudges) = mpsc::channel::<String>(1024);
    tokio::spawn(runtime_events(shared.clone(), nudge));
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", shared.node_name));
    let pods = watcher(Api::<Pod>::all(shared.client.clone()), config).default_backoff();
    let mut pods = pin!(pods);
    let mut listed: Option<HashMap<String, Arc<Pod>>> = None;
    loop {
        tokio::select! {
            event = pods.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed = Some(HashMap::new()),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    if let (Some(uid), Some(all)) = (pod.metadata.uid.clone(), listed.as_mut()) {
                        all.insert(uid, Arc::new(pod));
                    }
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    // Only a complete list says which pods are gone.
                    let all = listed.take().unwrap_or_default();
                    for (uid, worker) in &workers {
                        if !all.contains_key(uid) {
                            tell(worker, None);
                        }
                    }
                    remove_orphans(&shared, &all, &workers).await;
                    for (uid, pod) in all {
                        assign(&shared, &mut workers, &done, uid, pod);
                    }
                }
                Some(Ok(watcher::Event::Apply(pod))) => {
                    if let Some(uid) = pod.metadata.uid.clone() {
                        assign(&shared, &mut workers, &done, uid, Arc::new(pod));
                    }
                }
                Some(Ok(watcher::Event::Delete(pod))) => {
                    if let Some(worker) = pod.metadata.uid.as_ref().and_then(|uid| workers.get(uid)) {
                        tell(worker, None);
                    }
                }
                Some(Err(error)) => tracing::debug!(%error, "watch the node's pods"),
                None => return,
            },
            Some(uid) = finished.recv() => {
                workers.remove(&uid);
            }
            Some(uid) = nudges.recv() => {
                if let Some(worker) = workers.get(&uid) {
                    worker.input.send_modify(|input| input.nudge += 1);
                }
            }
        }
    }
}

fn tell(worker: &Worker, pod: Option<Arc<Pod>>) {
    worker.input.send_modify(|input| input.pod = pod);
}

fn assign(
    shared: &Arc<Shared>,
    workers: &mut HashMap<String, Worker>,
    done: &mpsc::Sender<String>,
    uid: String,
    pod: Arc<Pod>,
) {
    if let Some(worker) = workers.get(&uid) {
        return tell(worker, Some(pod));
    }
    let (input, receiver) = watch::channel(Input { pod: Some(pod.clone()), nudge: 0 });
    let worker = worker::Worker::new(shared.clone(), uid.clone(), pod, receiver);
    let done = done.clone();
    let key = uid.clone();
    tokio::spawn(async move {
        worker.run().await;
        let _ = done.send(key).await;
    });
    workers.insert(uid, Worker { input });
}

/// Sandboxes of pods that the API no longer has: left by an agent that was away when they were deleted.
async fn remove_orphans(
    shared: &Shared,
    listed: &HashMap<String, Arc<Pod>>,
    workers: &HashMap<String, Worker>,
) {
    let sandboxes = match shared.cri.sandboxes().await {
        Ok(sandboxes) => sandboxes,
        Err(status) => {
            return tracing::warn!(error = status.message(), "list sandboxes; orphans stay for now");
        }
    };
    for sandbox in sandboxes {
        let Some(uid) = sandbox.labels.get(POD_UID) else { continue };
        if listed.contains_key(uid) || workers.contains_key(uid) {
            continue;
        }
        tracing::info!(sandbox = sandbox.id, uid, "removing the sandbox of a pod that is gone");
        if let Err(status) = shared.cri.remove_sandbox(&sandbox.id).await {
            tracing::warn!(sandbox = sandbox.id, error = status.message(), "remove an orphan");
        }
        crate::volumes::remove(&shared.root_dir, uid);
    }
}

/// Turns the runtime's events into nudges.
async fn runtime_events(shared: Arc<Shared>, nudge: mpsc::Sender<String>) {
    loop {
        if let Ok(mut events) = shared.cri.events().await {
            while let Ok(Some(event)) = events.message().await {
                let uid = event.pod_sandbox_status.and_then(|status| status.metadata).map(|meta| meta.uid);
                if let Some(uid) = uid
                    && nudge.send(uid).await.is_err()
                {
                    return;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}
