//! Shared caches: one watch a kind, read by every controller, with handlers that turn changes into queue keys.
//!
//! A cache holds views (see [`crate::view`]) and inverted indices over them. Reading never waits for the network.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// `namespace/name`, or `name` for an object without a namespace. Cheap to clone.
pub type Key = Arc<str>;

/// The key of a name in a namespace; an empty namespace means a cluster object.
pub fn key(namespace: &str, name: &str) -> Key {
    if namespace.is_empty() { name.into() } else { format!("{namespace}/{name}").into() }
}

/// Namespace (empty for a cluster object) and name of a key.
pub fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

/// The key of an object.
pub fn key_of<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    key(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

/// A view that a [`Cache`] can hold.
pub trait Cached:
    Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static
{
    /// Drops what nobody reads, before the object is kept.
    fn trim(&mut self) {
        trim_meta(self.meta_mut());
    }

    /// The index entries that find this object, such as `owner:<uid>`. See [`Cache::by`].
    fn indices(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Drops managed fields and the annotations that kubectl keeps for itself.
pub fn trim_meta(meta: &mut kube::core::ObjectMeta) {
    meta.managed_fields = None;
    meta.self_link = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// A change, as handlers see it: what was there, and what is there now.
pub type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

struct Objects<K> {
    by_key: HashMap<Key, Arc<K>>,
    by_index: HashMap<String, HashSet<Key>>,
}

/// Every object of one kind that the API server has told of.
pub struct Cache<K> {
    objects: RwLock<Objects<K>>,
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self {
            objects: RwLock::new(Objects { by_key: HashMap::new(), by_index: HashMap::new() }),
            handlers: Mutex::default(),
            synced: watch::channel(false).0,
        }
    }
}

impl<K: Cached> Cache<K> {
    /// The object under a key.
    pub fn get(&self, key: &str) -> Option<Arc<K>> {
        self.objects.read().by_key.get(key).cloned()
    }

    /// All objects, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.objects.read().by_key.values().cloned().collect()
    }

    /// The objects with an index entry, in no order.
    pub fn by(&self, index: &str) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let keys = objects.by_index.get(index).into_iter().flatten();
        keys.filter_map(|k| objects.by_key.get(k).cloned()).collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.read().by_key.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `handler` on every change from now on. It must not block.
    pub fn on_change(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        self.handlers.lock().push(Box::new(handler));
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.synced.subscribe().wait_for(|s| *s).await;
    }

    /// Puts an object in, as its watch would.
    pub fn apply(&self, mut object: K) {
        object.trim();
        let (key, object) = (key_of(&object), Arc::new(object));
        let old = self.objects.write().insert(key, object.clone());
        self.notify(old.as_ref(), Some(&object));
    }

    /// Takes an object out, as its watch would.
    pub fn remove(&self, key: &str) {
        let old = self.objects.write().remove(key);
        if let Some(old) = old {
            self.notify(Some(&old), None);
        }
    }

    fn notify(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        for handler in self.handlers.lock().iter() {
            handler(old, new);
        }
    }

    /// Lists and watches until `shutdown`, for ever starting again after errors.
    pub async fn follow(
        self: Arc<Self>,
        client: Client,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) {
        let kind = K::kind(&());
        let mut events = watcher::watcher(Api::<K>::all(client), config).boxed();
        let mut listed: Option<HashSet<Key>> = None;
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
                    self.take(event, &mut listed);
                }
                Some(Err(error)) => {
                    failures += 1;
                    if not_served(&error) {
                        // A kind that the server does not serve has no objects.
                        self.synced.send_replace(true);
                        tracing::debug!(%kind, "not served");
                    } else if failures > 1 {
                        tracing::warn!(%kind, %error, "cannot watch");
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_millis(50) * 2u32.saturating_pow(failures.min(8))) => {}
                    }
                }
            }
        }
    }

    fn take(&self, event: Event<K>, listed: &mut Option<HashSet<Key>>) {
        match event {
            Event::Init => *listed = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(listed) = listed {
                    listed.insert(key_of(&object));
                }
                self.apply(object);
            }
            Event::InitDone => {
                let listed = listed.take().unwrap_or_default();
                let gone: Vec<Key> =
                    self.objects.read().by_key.keys().filter(|k| !listed.contains(*k)).cloned().collect();
                for key in gone {
                    self.remove(&key);
                }
                self.synced.send_replace(true);
            }
            Event::Apply(object) => self.apply(object),
            Event::Delete(object) => self.remove(&key_of(&object)),
        }
    }
}

fn not_served(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 404)
}

impl<K: Cached> Objects<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let new = object.indices();
        let old = self.by_key.insert(key.clone(), object);
        let before = old.as_ref().map(|o| o.indices()).unwrap_or_default();
        if before != new {
            self.unindex(&key, before);
            for index in new {
                self.by_index.entry(index).or_default().insert(key.clone());
            }
        }
        old
    }

    fn remove(&mut self, key: &str) -> Option<Arc<K>> {
        let (key, old) = self.by_key.remove_entry(key)?;
        self.unindex(&key, old.indices());
        Some(old)
    }

    fn unindex(&mut self, key: &Key, indices: Vec<String>) {
        for index in indices {
            if let Some(keys) = self.by_index.get_mut(&index) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_index.remove(&index);
                }
            }
        }
    }
}
