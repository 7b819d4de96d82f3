//! Resources that are defined by objects: they come and go while the server runs.
//!
//! The objects that define them are followed through the store's watch, so that every member of a cluster serves the same,
//! whoever wrote them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use coracle_store::{KeyValue, Range, Store};
use serde_json::Value;
use tokio::sync::watch;

use crate::catalog::Catalog;
use crate::resource::ResourceDef;
use crate::server::ApiServer;
use crate::state::Shared;

/// How long a call waits for a definition that was written and is not served yet.
const CATCH_UP: Duration = Duration::from_secs(2);
/// How long after a failure the definitions are read again.
const RETRY: Duration = Duration::from_secs(1);

/// A kind whose objects define resources.
#[async_trait]
pub trait ResourceSource: Send + Sync + 'static {
    /// The prefix of these objects in the store.
    fn prefix(&self) -> String;

    /// The resources that one object defines. An object that defines none, or is wrong, defines none.
    fn resources(&self, object: &Value) -> Vec<ResourceDef>;

    /// Called after every change, with what is defined now: finish what a deletion has begun. True: call again soon.
    async fn tend(&self, _server: &ApiServer, _objects: &[Value]) -> bool {
        false
    }
}

type Defs = Vec<Arc<ResourceDef>>;

/// Newest revision and number of the objects that define resources: what tells one state of them from another.
type Extent = (u64, usize);

/// The resources that objects define, as far as they are known here.
pub(crate) struct Dynamic {
    source: Arc<dyn ResourceSource>,
    fixed: Defs,
    /// What is served.
    state: watch::Sender<Extent>,
}

/// What one object defined when it was looked at.
struct Known {
    revision: u64,
    object: Value,
    defs: Defs,
}

impl Dynamic {
    pub fn new(source: Arc<dyn ResourceSource>, fixed: Defs) -> Self {
        Self { source, fixed, state: watch::channel((0, 0)).0 }
    }

    /// Waits until everything that is stored is served; bounded.
    pub async fn catch_up(&self, store: &Store) {
        let mut state = self.state.subscribe();
        let served = async {
            while let Some((_, wanted)) = self.read(store) {
                if *state.borrow_and_update() == wanted || state.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(CATCH_UP, served).await;
    }

    fn read(&self, store: &Store) -> Option<(Vec<Arc<KeyValue>>, Extent)> {
        let found = store.range(&Range::prefix(self.source.prefix())).ok()?;
        let newest = found.kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or(0);
        let count = found.kvs.len();
        Some((found.kvs, (newest, count)))
    }

    fn refresh(&self, kvs: &[Arc<KeyValue>], known: &mut HashMap<Bytes, Known>) -> Defs {
        known.retain(|key, _| kvs.iter().any(|kv| kv.key == *key));
        for kv in kvs {
            if known.get(&kv.key).is_some_and(|k| k.revision == kv.mod_revision) {
                continue;
            }
            let object: Value = serde_json::from_slice(&kv.to_json()).unwrap_or_default();
            let defs = self.source.resources(&object).into_iter().map(Arc::new).collect();
            known.insert(kv.key.clone(), Known { revision: kv.mod_revision, object, defs });
        }
        let mut all = self.fixed.clone();
        for kv in kvs {
            let Some(found) = known.get(&kv.key) else { continue };
            for def in &found.defs {
                // Names that are taken stay with who has them.
                if !all
                    .iter()
                    .any(|d| d.group == def.group && d.version == def.version && d.plural == def.plural)
                {
                    all.push(def.clone());
                }
            }
        }
        all
    }

    fn serve(&self, shared: &Shared, known: &mut HashMap<Bytes, Known>) {
        let Some((kvs, state)) = self.read(shared.objects.store()) else { return };
        let defs = self.refresh(&kvs, known);
        let catalog = shared.catalog.load();
        shared.objects.replace(defs.clone());
        shared.catalog.store(Arc::new(catalog.replaced(&defs)));
        self.state.send_replace(state);
    }
}

/// Serves what is defined, and goes on to do so until shutdown. Must run in a tokio runtime.
pub(crate) fn follow(server: ApiServer) {
    let shared = server.shared().clone();
    let Some(dynamic) = shared.dynamic.clone() else { return };
    let mut known = HashMap::new();
    dynamic.serve(&shared, &mut known);
    let shutdown = shared.shutdown.clone();
    drop(shared);
    tokio::spawn(async move {
        let work = async {
            loop {
                run(&server, &dynamic, &mut known).await;
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    });
}

/// Follows the watch until it ends.
async fn run(server: &ApiServer, dynamic: &Dynamic, known: &mut HashMap<Bytes, Known>) {
    let shared = server.shared();
    let store = shared.objects.store();
    let Ok(mut watch) = store.watch(dynamic.source.prefix().into(), store.revision()) else { return };
    loop {
        dynamic.serve(shared, known);
        let objects: Vec<Value> = known.values().map(|k| k.object.clone()).collect();
        let again = dynamic.source.tend(server, &objects).await;
        let event = async {
            if again {
                tokio::time::timeout(RETRY, watch.next()).await.ok()
            } else {
                Some(watch.next().await)
            }
        };
        if event.await.is_some_and(|e| e.is_err()) {
            return;
        }
        // What came meanwhile is seen by the same look.
        while let Ok(Some(_)) = watch.try_next() {}
    }
}

/// A catalog that is swapped as a whole.
pub(crate) type Current = ArcSwap<Catalog>;
