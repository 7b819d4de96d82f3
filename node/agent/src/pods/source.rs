//! Follows the pods of this node in the API and the containers in the runtime, and wakes the workers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::requests::Amounts;
use super::state::{Failed, Fate};
use super::static_pods;
use super::worker::{Wanted, Worker};
use crate::context::Context;
use crate::runtime::label;

/// How often all containers are listed, besides their events.
const RELIST: Duration = Duration::from_secs(1);
const RELIST_WITH_EVENTS: Duration = Duration::from_secs(5);

struct Entry {
    /// From a file of this node.
    of_file: bool,
    wanted: watch::Sender<Wanted>,
    wake: Arc<Notify>,
}

/// What pods that the node has taken ask for.
#[derive(Default)]
struct Taken {
    by: HashMap<String, Amounts>,
    sum: Amounts,
}

impl Taken {
    fn add(&mut self, uid: &str, asked: Amounts) {
        self.remove(uid);
        self.sum.iter_mut().zip(asked).for_each(|(sum, one)| *sum = sum.saturating_add(one));
        self.by.insert(uid.to_owned(), asked);
    }

    fn remove(&mut self, uid: &str) -> Option<Amounts> {
        let asked = self.by.remove(uid)?;
        self.sum.iter_mut().zip(asked).for_each(|(sum, one)| *sum = sum.saturating_sub(one));
        Some(asked)
    }
}

/// The pods that have a worker, by uid. Shared with the node API.
#[derive(Clone, Default)]
pub struct Pods {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    taken: Arc<Mutex<Taken>>,
    /// The static pods were told: what is in neither their files nor the API is nobody's.
    files_known: watch::Sender<bool>,
    /// What pods have that are gone was taken back: what is not free now is in use.
    listed: watch::Sender<bool>,
}

impl Pods {
    /// All pods of this node, as the API last had them.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        self.entries.lock().values().map(|e| e.wanted.borrow().pod.clone()).collect()
    }

    /// The pod of this name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let matches = |pod: &Arc<Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace) && pod.metadata.name.as_deref() == Some(name)
        };
        let found = self.list().into_iter().filter(matches);
        // Two of one name: the one that leaves was replaced already.
        found.min_by_key(|pod| pod.metadata.deletion_timestamp.is_some())
    }

    /// All pods of this node, and whether they are wanted.
    pub fn list_with_fate(&self) -> Vec<(Arc<Pod>, Fate)> {
        self.entries.lock().values().map(|e| e.wanted.borrow().clone()).map(|w| (w.pod, w.fate)).collect()
    }

    /// Fails a pod: its worker ends its containers and says why.
    pub fn fail(&self, uid: &str, failed: Failed) {
        if let Some(entry) = self.entries.lock().get(uid) {
            entry.wanted.send_modify(|w| w.failed = Some(failed));
        }
    }

    /// Takes a pod that asks for so much if `fits` says so of what is in use, and how many pods use it. One decision at a
    /// time: two pods do not get the same room. A pod that was taken before is not in its own way.
    pub fn take(&self, uid: &str, asked: Amounts, fits: impl FnOnce(Amounts, usize) -> bool) {
        let mut taken = self.taken.lock();
        let before = taken.remove(uid);
        if fits(taken.sum, taken.by.len()) {
            taken.add(uid, asked);
        } else if let Some(before) = before {
            taken.add(uid, before);
        }
    }

    /// Whether what pods have that left while nobody watched was taken back. Waits a moment for it.
    pub async fn settled(&self, moment: Duration) -> bool {
        let mut listed = self.listed.subscribe();
        let settled = tokio::time::timeout(moment, listed.wait_for(|listed| *listed)).await;
        settled.is_ok_and(|listed| listed.is_ok())
    }

    /// What a pod asked for is free again.
    pub fn release(&self, uid: &str) {
        self.taken.lock().remove(uid);
    }

    fn wake(&self, uid: &str) {
        if let Some(entry) = self.entries.lock().get(uid) {
            entry.wake.notify_one();
        }
    }

    fn apply(&self, context: &Arc<Context>, mut pod: Pod) {
        // Who wrote which field is nothing to a node, and often more than all the rest.
        pod.metadata.managed_fields = None;
        if static_pods::mirrors(&pod).is_some() {
            return self.mirror(context, &pod, pod.metadata.deletion_timestamp.is_some());
        }
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let fate = if pod.metadata.deletion_timestamp.is_some() { Fate::Leaves } else { Fate::Runs };
        // A copy is as large as what it holds: lists that were decoded have room for three items more, which may be half.
        self.set(context, uid, Wanted::new(pod.clone(), fate));
    }

    /// The mirror of a static pod was seen, or is `leaving`: then the pod's worker makes another. One that mirrors nothing
    /// is removed.
    fn mirror(&self, context: &Arc<Context>, pod: &Pod, leaving: bool) {
        let entries = self.entries.lock();
        let same = |entry: &&Entry| {
            let own = &entry.wanted.borrow().pod.metadata;
            entry.of_file && own.name == pod.metadata.name && own.namespace == pod.metadata.namespace
        };
        match entries.values().find(same) {
            Some(entry) if leaving => entry.wanted.send_modify(|w| w.mirrors_lost += 1),
            Some(_) => {}
            None if !*self.files_known.borrow() => {}
            None => {
                tokio::spawn(static_pods::remove_mirror(context.client.clone(), pod.clone()));
            }
        }
    }

    /// Brings the static pods to `wanted`: what is no longer there leaves; what is new starts when the one of that name is
    /// gone.
    pub fn set_static(&self, context: &Arc<Context>, wanted: Vec<Pod>) {
        {
            let entries = self.entries.lock();
            let listed = |uid: &String| wanted.iter().any(|pod| pod.metadata.uid.as_ref() == Some(uid));
            for (_, entry) in entries.iter().filter(|(uid, entry)| entry.of_file && !listed(uid)) {
                entry.wanted.send_if_modified(|w| {
                    let runs = w.fate == Fate::Runs;
                    w.fate = if runs { Fate::Leaves } else { w.fate };
                    runs
                });
            }
        }
        for pod in wanted {
            let Some(uid) = pod.metadata.uid.clone() else { continue };
            let known = self.entries.lock().values().any(|entry| {
                let own = &entry.wanted.borrow().pod.metadata;
                entry.of_file && own.name == pod.metadata.name && own.namespace == pod.metadata.namespace
            });
            if !known {
                self.set(context, uid, Wanted::new(pod, Fate::Runs));
            }
        }
        self.files_known.send_replace(true);
    }

    fn gone(&self, uid: &str) {
        if let Some(entry) = self.entries.lock().get(uid) {
            entry.wanted.send_modify(|w| w.fate = Fate::Gone);
        }
    }

    fn set(&self, context: &Arc<Context>, uid: String, wanted: Wanted) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(&uid) {
            // What is gone stays gone: its worker only tears down.
            entry.wanted.send_if_modified(|old| {
                let changes = old.fate != Fate::Gone;
                if changes {
                    let (failed, mirrors_lost) = (old.failed.take(), old.mirrors_lost);
                    *old = Wanted { failed, mirrors_lost, ..wanted };
                }
                changes
            });
            return;
        }
        let of_file = static_pods::is_static(&wanted.pod);
        let (sender, receiver) = watch::channel(wanted);
        let wake = Arc::new(Notify::new());
        let mut worker = Worker::new(context.clone(), self.clone(), receiver, wake.clone());
        entries.insert(uid.clone(), Entry { of_file, wanted: sender, wake });
        drop(entries);
        let pods = self.clone();
        tokio::spawn(async move {
            worker.run().await;
            pods.release(&uid);
            pods.entries.lock().remove(&uid);
        });
    }
}

/// Follows both until `shutdown`.
pub async fn run(context: Arc<Context>, pods: Pods, shutdown: CancellationToken) {
    let files = static_pods::Files::new(&context);
    files.look(&context, &pods).await;
    tokio::select! {
        () = files.follow(&context, &pods) => {}
        () = follow_api(&context, &pods) => {}
        () = follow_runtime(&context, &pods) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Until the files of static pods were read once, nothing is torn down for being unknown; from then on from a new list.
async fn follow_api(context: &Arc<Context>, pods: &Pods) {
    let mut known = pods.files_known.subscribe();
    tokio::select! {
        biased;
        _ = known.wait_for(|known| *known) => {}
        () = follow_list(context, pods, false) => {}
    }
    follow_list(context, pods, true).await;
}

async fn follow_list(context: &Arc<Context>, pods: &Pods, mut clean_up: bool) {
    let api: Api<Pod> = Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.node_name));
    let stream = watcher(api, config).default_backoff();
    futures::pin_mut!(stream);
    let mut listed: HashSet<String> = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Apply(pod)) => pods.apply(context, pod),
            Ok(watcher::Event::Delete(pod)) => {
                if static_pods::mirrors(&pod).is_some() {
                    pods.mirror(context, &pod, true);
                } else if let Some(uid) = &pod.metadata.uid {
                    pods.gone(uid);
                }
            }
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                listed.extend(pod.metadata.uid.clone());
                pods.apply(context, pod);
            }
            Ok(watcher::Event::InitDone) => {
                let of_api: Vec<String> = {
                    let entries = pods.entries.lock();
                    entries.iter().filter(|(_, e)| !e.of_file).map(|(uid, _)| uid.clone()).collect()
                };
                // Mirrors that went while nobody watched are made anew.
                pods.entries.lock().values().filter(|e| e.of_file).for_each(|entry| {
                    entry.wanted.send_modify(|w| w.mirrors_lost += 1);
                });
                of_api.iter().filter(|uid| !listed.contains(*uid)).for_each(|uid| pods.gone(uid));
                if std::mem::take(&mut clean_up) {
                    let known = |uid: &str| listed.contains(uid) || pods.entries.lock().contains_key(uid);
                    context.placement.retain(known);
                    pods.listed.send_replace(true);
                    tokio::spawn(adopt_orphans(context.clone(), pods.clone(), listed.clone()));
                }
            }
            Err(error) => tracing::warn!(%error, "the watch of pods was interrupted; it goes on"),
        }
    }
}

/// Pods that the API no longer has, and that left sandboxes or files here, get a worker that tears them down. Only after a
/// complete list.
async fn adopt_orphans(context: Arc<Context>, pods: Pods, listed: HashSet<String>) {
    let sandboxes = loop {
        match context.runtime.sandboxes().await {
            Ok(sandboxes) => break sandboxes,
            Err(_) => tokio::time::sleep(RELIST).await,
        }
    };
    let of_sandboxes = sandboxes.into_iter().map(|sandbox| {
        let of = |key: &str| sandbox.labels.get(key).cloned();
        let uid = of(label::POD_UID).or_else(|| sandbox.metadata.as_ref().map(|m| m.uid.clone()));
        (uid.unwrap_or_default(), of(label::POD_NAMESPACE), of(label::POD_NAME))
    });
    // An agent that ended between a sandbox's removal and that of the pod's files left those.
    let root = context.root.clone();
    let of_files = tokio::task::spawn_blocking(move || leftovers(&root)).await.unwrap_or_default();
    for (uid, namespace, name) in of_sandboxes.chain(of_files) {
        if uid.is_empty() || listed.contains(&uid) || pods.entries.lock().contains_key(&uid) {
            continue;
        }
        tracing::info!(uid, name, "a pod that left the API meanwhile is torn down");
        let mut pod = Pod::default();
        (pod.metadata.uid, pod.metadata.namespace, pod.metadata.name) = (Some(uid.clone()), namespace, name);
        pods.set(&context, uid, Wanted::new(pod, Fate::Gone));
    }
}

/// Uid, namespace and name of pods that have files below the agent's root. Names are known of those that have logs.
fn leftovers(root: &Path) -> Vec<(String, Option<String>, Option<String>)> {
    let names = |folder: &str| {
        let entries = std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().into_string().ok())
    };
    let of_logs = names("logs").filter_map(|folder| {
        let mut parts = folder.splitn(3, '_').map(str::to_owned);
        let (namespace, name) = (parts.next()?, parts.next()?);
        Some((parts.next()?, Some(namespace), Some(name)))
    });
    of_logs.chain(names("pods").map(|uid| (uid, None, None))).collect()
}

async fn follow_runtime(context: &Arc<Context>, pods: &Pods) {
    let mut known: BTreeMap<String, (String, i32)> = BTreeMap::new();
    loop {
        let events = context.runtime.events().await.ok();
        // Without events the stream is asked for again every few rounds.
        let (period, rounds) = if events.is_some() { (RELIST_WITH_EVENTS, usize::MAX) } else { (RELIST, 10) };
        let listing = async {
            for _ in 0..rounds {
                relist(context, pods, &mut known).await;
                tokio::time::sleep(period).await;
            }
        };
        match events {
            Some(events) => tokio::select! {
                () = listing => {}
                () = drain(events, pods) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            None => listing.await,
        }
    }
}

async fn drain(mut events: tonic::Streaming<coracle_cri_api::v1::ContainerEventResponse>, pods: &Pods) {
    while let Ok(Some(event)) = events.message().await {
        let sandbox = event.pod_sandbox_status.as_ref();
        let uid = sandbox.and_then(|s| s.metadata.as_ref()).map(|m| m.uid.as_str());
        let of_container = event.containers_statuses.iter().find_map(|c| c.labels.get(label::POD_UID));
        if let Some(uid) = uid.or(of_container.map(String::as_str)) {
            pods.wake(uid);
        }
    }
}

async fn relist(context: &Arc<Context>, pods: &Pods, known: &mut BTreeMap<String, (String, i32)>) {
    let (Ok(containers), Ok(sandboxes)) =
        (context.runtime.containers(HashMap::new()).await, context.runtime.sandboxes().await)
    else {
        return;
    };
    let uid = |labels: &HashMap<String, String>| labels.get(label::POD_UID).cloned();
    let containers = containers.into_iter().filter_map(|c| Some((c.id, (uid(&c.labels)?, c.state))));
    let sandboxes = sandboxes.into_iter().filter_map(|s| Some((s.id, (uid(&s.labels)?, s.state))));
    let now: BTreeMap<String, (String, i32)> = containers.chain(sandboxes).collect();
    for (id, entry) in &now {
        if known.get(id) != Some(entry) {
            pods.wake(&entry.0);
        }
    }
    for (id, (uid, _)) in known.iter() {
        if !now.contains_key(id) {
            pods.wake(uid);
        }
    }
    *known = now;
}
