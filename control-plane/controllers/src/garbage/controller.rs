//! Watches the metadata of every deletable resource and carries out the plans.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::graph::{Graph, Object};
use super::plan::{Action, plan, unknown_owners};
use crate::cache::Key;
use crate::discovery::{Served, deletable};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::Head;
use crate::write::{self, Delete, Writer};

const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
const REMEMBERED: usize = 50_000;
/// When an object whose owner is of a kind that is not served is looked at again.
const UNSERVED_PERIOD: Duration = Duration::from_secs(10);

/// Uids that are known to be gone. A uid never comes back.
#[derive(Default)]
struct Gone {
    uids: HashSet<String>,
    order: VecDeque<String>,
}

impl Gone {
    fn insert(&mut self, uid: &str) {
        if self.uids.insert(uid.to_string()) {
            self.order.push_back(uid.to_string());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.uids.remove(&oldest);
            }
        }
    }
}

/// Deletes what lost its owners.
pub struct GarbageCollector {
    writer: Writer,
    queue: WorkQueue,
    graph: RwLock<Graph>,
    gone: Mutex<Gone>,
    /// What is watched, by group and kind.
    served: RwLock<HashMap<(String, String), Arc<Served>>>,
    /// Somebody owns something of a kind that is not watched: it may be new.
    unserved: Notify,
}

impl GarbageCollector {
    /// A collector that has seen nothing yet; see [`GarbageCollector::watch`].
    pub fn new(writer: Writer) -> Arc<Self> {
        Arc::new(Self {
            writer,
            queue: WorkQueue::new(),
            graph: RwLock::default(),
            gone: Mutex::default(),
            served: RwLock::default(),
            unserved: Notify::new(),
        })
    }

    /// Discovers resources and watches each, until `shutdown`.
    pub async fn watch(self: Arc<Self>, client: Client, shutdown: CancellationToken) {
        loop {
            match deletable(&client).await {
                Ok(served) => {
                    for served in served.into_iter().filter(|s| s.resource.kind != "Event") {
                        let key = (served.resource.group.clone(), served.resource.kind.clone());
                        if self.served.read().contains_key(&key) {
                            continue;
                        }
                        self.served.write().insert(key, served.clone());
                        tokio::spawn(self.clone().follow(client.clone(), served, shutdown.clone()));
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot discover resources"),
            }
            let pause = if self.served.read().is_empty() { Duration::from_secs(1) } else { DISCOVERY_PERIOD };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.unserved.notified() => {}
            }
        }
    }

    async fn follow(self: Arc<Self>, client: Client, served: Arc<Served>, shutdown: CancellationToken) {
        let api = Api::<Head>::all_with(client, &served.resource);
        let mut events = watcher::watcher(api, watcher::Config::default()).boxed();
        let mut listed: HashSet<String> = HashSet::new();
        let mut failures: u32 = 0;
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Ok(event)) => {
                    failures = 0;
                    self.take(&served, event, &mut listed);
                }
                Some(Err(error)) => {
                    failures = (failures + 1).min(8);
                    tracing::debug!(kind = served.resource.kind, %error, "cannot watch");
                    tokio::time::sleep(Duration::from_millis(50) * 2u32.pow(failures)).await;
                }
            }
        }
    }

    fn take(&self, served: &Arc<Served>, event: watcher::Event<Head>, listed: &mut HashSet<String>) {
        match event {
            watcher::Event::Init => listed.clear(),
            watcher::Event::InitApply(object) => {
                listed.insert(object.metadata.uid.clone().unwrap_or_default());
                self.set(Object::new(served.clone(), object.metadata));
            }
            watcher::Event::InitDone => {
                let known = self.graph.read().of(served);
                known.iter().filter(|uid| !listed.contains(*uid)).for_each(|uid| self.remove(uid));
                listed.clear();
            }
            watcher::Event::Apply(object) => self.set(Object::new(served.clone(), object.metadata)),
            watcher::Event::Delete(object) => self.remove(object.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn set(&self, object: Object) {
        let look = self.graph.write().set(object);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn remove(&self, uid: &str) {
        self.gone.lock().insert(uid);
        let look = self.graph.write().remove(uid);
        look.into_iter().for_each(|uid| self.queue.add(uid));
    }

    fn kind_of(owner: &OwnerReference) -> (String, String) {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group).to_string();
        (group, owner.kind.clone())
    }

    // Asks the API server itself: a watch that lags must not make an owner look gone.
    async fn is_gone(&self, owner: &OwnerReference, namespace: &str) -> write::Result<bool> {
        if self.gone.lock().uids.contains(&owner.uid) {
            return Ok(true);
        }
        let Some(served) = self.served.read().get(&Self::kind_of(owner)).cloned() else {
            // A kind that is not served now may be served later.
            return Ok(false);
        };
        let path = served.path(if served.namespaced { namespace } else { "" }, &owner.name);
        let gone = match self.writer.get::<write::Written>(&path).await {
            Ok(there) => there.metadata.uid != owner.uid,
            Err(error) if write::is_not_found(&error) => true,
            Err(error) => return Err(error),
        };
        if gone {
            self.gone.lock().insert(&owner.uid);
        }
        Ok(gone)
    }
}

#[async_trait]
impl Reconciler for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    fn workers(&self) -> usize {
        20
    }

    async fn reconcile(&self, uid: &Key) -> anyhow::Result<Option<Duration>> {
        let Some((object, unknown)) = ({
            let graph = self.graph.read();
            graph.get(uid).map(|o| (o.clone(), unknown_owners(&graph, o).cloned().collect::<Vec<_>>()))
        }) else {
            return Ok(None);
        };
        let mut absent = HashSet::new();
        let unserved = unknown.iter().any(|o| !self.served.read().contains_key(&Self::kind_of(o)));
        for owner in unknown {
            if self.is_gone(&owner, &object.namespace).await? {
                absent.insert(owner.uid);
            }
        }
        let actions = plan(&self.graph.read(), &object, |uid| absent.contains(uid));
        for action in actions {
            let answer = match &action {
                Action::Delete { path, uid, resource_version, propagation } => {
                    let how = Delete {
                        uid: Some(uid),
                        resource_version: Some(resource_version),
                        propagation: Some(propagation),
                        grace: None,
                    };
                    self.writer.delete(path, how).await
                }
                Action::Patch { path, body } => self.writer.merge(path, body).await.map(drop),
            };
            match answer {
                Err(error) if !write::is_not_found(&error) => return Err(error.into()),
                _ => {}
            }
        }
        if unserved {
            self.unserved.notify_one();
        }
        Ok(unserved.then_some(UNSERVED_PERIOD))
    }
}
