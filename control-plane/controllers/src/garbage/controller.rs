//! Watches the metadata of every deletable resource and carries out the plans.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::graph::{Graph, Object};
use super::plan::{Action, let_go, plan, unknown_owners};
use crate::cache::Key;
use crate::discovery::{Served, deletable};
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::Head;
use crate::write::{self, Delete, Writer};

const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
const REMEMBERED: usize = 50_000;
/// How many kinds are listed at once, and how many objects a page.
const LISTS: usize = 4;
const PAGE: u32 = 500;
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

/// A kind that is watched.
struct Watched {
    served: Arc<Served>,
    /// The newest version of one of its objects that was seen: all that is older was, too.
    seen: AtomicU64,
}

/// A resource version as a number; one that is none counts as old.
fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

/// Deletes what lost its owners.
pub struct GarbageCollector {
    writer: Writer,
    queue: WorkQueue,
    graph: RwLock<Graph>,
    gone: Mutex<Gone>,
    /// By group and kind.
    watched: RwLock<HashMap<(String, String), Arc<Watched>>>,
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
            watched: RwLock::default(),
            unserved: Notify::new(),
        })
    }

    /// Discovers resources and watches each, until `shutdown`.
    pub async fn watch(self: Arc<Self>, client: Client, shutdown: CancellationToken) {
        loop {
            match deletable(&client).await {
                Ok(served) => {
                    // All of them are known before the first is followed: what is seen of one may depend on another.
                    let mut new = Vec::new();
                    for served in served.into_iter().filter(|s| s.resource.kind != "Event") {
                        let key = (served.resource.group.clone(), served.resource.kind.clone());
                        if let Entry::Vacant(free) = self.watched.write().entry(key) {
                            let kind = Arc::new(Watched { served, seen: AtomicU64::new(0) });
                            new.push(free.insert(kind).clone());
                        }
                    }
                    for kind in new {
                        tokio::spawn(self.clone().follow(client.clone(), kind, shutdown.clone()));
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot discover resources"),
            }
            let pause =
                if self.watched.read().is_empty() { Duration::from_secs(1) } else { DISCOVERY_PERIOD };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                () = self.unserved.notified() => {}
            }
        }
    }

    async fn follow(self: Arc<Self>, client: Client, kind: Arc<Watched>, shutdown: CancellationToken) {
        let api = Api::<Head>::all_with(client, &kind.served.resource);
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
                    self.take(&kind, event, &mut listed);
                }
                Some(Err(error)) => {
                    failures = (failures + 1).min(8);
                    tracing::debug!(kind = kind.served.resource.kind, %error, "cannot watch");
                    tokio::time::sleep(Duration::from_millis(50) * 2u32.pow(failures)).await;
                }
            }
        }
    }

    fn take(&self, kind: &Watched, event: watcher::Event<Head>, listed: &mut HashSet<String>) {
        let Watched { served, seen } = kind;
        // A list does not say of which version it is, and its objects come in no order of theirs.
        let newest = match &event {
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => {
                object.metadata.resource_version.as_deref().map_or(0, version)
            }
            watcher::Event::Init | watcher::Event::InitApply(_) | watcher::Event::InitDone => 0,
        };
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
        seen.fetch_max(newest, Ordering::Release);
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
        let Some(kind) = self.watched.read().get(&Self::kind_of(owner)).cloned() else {
            // A kind that is not served now may be served later.
            return Ok(false);
        };
        let served = &kind.served;
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

    // What a watch has not shown yet would be deleted for want of its owner: kinds of which nothing as new as the owner's
    // deletion was seen are listed. An owner whose dependents cannot be listed stays.
    async fn dependents_now(&self, owner: &Object) -> write::Result<Vec<Object>> {
        let can_depend = |kind: &&Arc<Watched>| owner.namespace.is_empty() || kind.served.namespaced;
        let kinds: Vec<_> = self.watched.read().values().filter(can_depend).cloned().collect();
        let of_kinds = stream::iter(kinds).map(async |kind| {
            if kind.seen.load(Ordering::Acquire) < version(&owner.resource_version) {
                return self.list_dependents(&kind.served, owner).await;
            }
            let graph = self.graph.read();
            let of_kind = |d: &&Object| Arc::ptr_eq(&d.served, &kind.served);
            Ok(graph.dependents(&owner.uid).filter(of_kind).cloned().collect())
        });
        of_kinds.buffer_unordered(LISTS).try_concat().await
    }

    async fn list_dependents(&self, served: &Arc<Served>, owner: &Object) -> write::Result<Vec<Object>> {
        let client = self.writer.client().clone();
        let api: Api<Head> = match owner.namespace.as_str() {
            "" => Api::all_with(client, &served.resource),
            namespace => Api::namespaced_with(client, namespace, &served.resource),
        };
        let (mut dependents, mut page) = (Vec::new(), ListParams::default().limit(PAGE));
        loop {
            let listed = match api.list_metadata(&page).await {
                // The kind is not served any more.
                Err(error) if write::is_not_found(&error) => return Ok(Vec::new()),
                listed => listed?,
            };
            let objects = listed.items.into_iter().map(|o| Object::new(served.clone(), o.metadata));
            dependents.extend(objects.filter(|o| o.owners.iter().any(|o| o.uid == owner.uid)));
            match listed.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(dependents),
            }
        }
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
        let unserved = unknown.iter().any(|o| !self.watched.read().contains_key(&Self::kind_of(o)));
        for owner in unknown {
            if self.is_gone(&owner, &object.namespace).await? {
                absent.insert(owner.uid);
            }
        }
        let actions = if object.orphans_dependents() {
            let_go(self.dependents_now(&object).await?.iter(), &object)
        } else {
            plan(&self.graph.read(), &object, |uid| absent.contains(uid))
        };
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
