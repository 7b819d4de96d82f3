//! Reads and guarded writes of any registered object, for strategies, admission plugins and subresource handlers.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use coracle_api::{GroupResource, Status};
use coracle_store::{KeyValue, Range, RangeResponse, Store, Txn, TxnResponse};
use futures::FutureExt;
use jiff::Timestamp;
use serde_json::Value;

use crate::codec;
use crate::resource::ResourceDef;

/// How often a guarded write is tried again when another writer came between.
pub(crate) const MAX_ATTEMPTS: usize = 16;

/// A cheap handle on the store and on what is registered.
#[derive(Clone)]
pub struct Objects {
    pub(crate) store: Arc<Store>,
    resources: Arc<ArcSwap<Vec<Arc<ResourceDef>>>>,
}

impl Objects {
    /// A handle on a store that serves these resources.
    pub fn new(store: Arc<Store>, resources: Vec<Arc<ResourceDef>>) -> Self {
        Self { store, resources: Arc::new(ArcSwap::from_pointee(resources)) }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Everything registered now.
    pub fn resources(&self) -> Arc<Vec<Arc<ResourceDef>>> {
        self.resources.load_full()
    }

    /// Other resources from now on.
    pub(crate) fn replace(&self, resources: Vec<Arc<ResourceDef>>) {
        self.resources.store(Arc::new(resources));
    }

    /// A registered resource by group and plural.
    pub fn resource(&self, group: &str, plural: &str) -> Option<Arc<ResourceDef>> {
        self.resources.load().iter().find(|r| r.group == group && r.plural == plural).cloned()
    }

    pub(crate) fn known(&self, group: &str, plural: &str) -> Result<Arc<ResourceDef>, Status> {
        self.resource(group, plural).ok_or_else(|| {
            Status::internal(format!("resource {} is not registered", GroupResource::new(group, plural)))
        })
    }

    /// One object with its `resourceVersion`, or `None`.
    pub async fn get(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        let def = self.known(group, plural)?;
        match self.fetch(&def.key(namespace, name).into(), &def.group_resource()).await? {
            Some(kv) => codec::decode(&def, &kv).map(Some).map_err(crate::errors::corrupt),
            None => Ok(None),
        }
    }

    /// All objects of a resource, in one namespace or in all.
    pub async fn list(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
    ) -> Result<Vec<Value>, Status> {
        let def = self.known(group, plural)?;
        let prefix = match (def.namespaced, namespace) {
            (true, Some(namespace)) => format!("{}{namespace}/", def.prefix()),
            _ => def.prefix(),
        };
        let found = self.range(&Range::prefix(prefix), &def.group_resource()).await?;
        found.kvs.iter().map(|kv| codec::decode(&def, kv).map_err(crate::errors::corrupt)).collect()
    }

    /// The key of an object and the form in which it is stored, for who writes it with something else in one transaction. Neither
    /// admission nor validation runs.
    pub fn stored(
        &self,
        group: &str,
        plural: &str,
        obj: &Value,
    ) -> Result<(Bytes, coracle_store::Value), Status> {
        let def = self.known(group, plural)?;
        let name = coracle_api::meta::name(obj).unwrap_or_default();
        let key = def.key(coracle_api::meta::namespace(obj), name);
        Ok((key.into(), codec::to_stored(&def, obj)?))
    }

    /// Reads, changes and writes an object until no other writer came between (bounded). Neither admission nor
    /// validation runs. NotFound if it does not exist.
    pub async fn update<F>(
        &self,
        group: &str,
        plural: &str,
        namespace: Option<&str>,
        name: &str,
        mut change: F,
    ) -> Result<Value, Status>
    where
        F: FnMut(&mut Value) -> Result<(), Status> + Send,
    {
        let def = self.known(group, plural)?;
        let (gr, key) = (def.group_resource(), Bytes::from(def.key(namespace, name)));
        for _ in 0..MAX_ATTEMPTS {
            let Some(kv) = self.fetch(&key, &gr).await? else { return Err(Status::not_found(&gr, name)) };
            let old = codec::decode(&def, &kv).map_err(crate::errors::corrupt)?;
            let mut new = old.clone();
            change(&mut new)?;
            if new == old {
                return Ok(old);
            }
            let ttl = def.ttl.map(|t| t.as_millis().try_into().unwrap_or(u64::MAX));
            let txn = Txn::update(key.clone(), kv.mod_revision, codec::to_stored(&def, &new)?, ttl);
            let done = self.txn(txn, &gr).await?;
            if done.succeeded {
                codec::set_revision(&mut new, done.revision);
                return Ok(new);
            }
        }
        Err(Status::modified(&gr, name))
    }

    /// The same for a change of the status that `manager` is to own.
    ///
    /// # Errors
    /// Those of [`Objects::update`].
    pub async fn update_status<F>(
        &self,
        (group, plural): (&str, &str),
        namespace: Option<&str>,
        name: &str,
        (manager, now): (&str, Timestamp),
        mut change: F,
    ) -> Result<Value, Status>
    where
        F: FnMut(&mut Value) -> Result<(), Status> + Send,
    {
        let def = self.known(group, plural)?;
        let owned = |obj: &mut Value| {
            let old = obj.clone();
            change(obj)?;
            crate::managed::status_changed(&def, manager, now, &old, obj);
            Ok(())
        };
        self.update(group, plural, namespace, name, owned).await
    }

    pub(crate) async fn fetch(
        &self,
        key: &Bytes,
        gr: &GroupResource,
    ) -> Result<Option<Arc<KeyValue>>, Status> {
        let _ = gr;
        Ok(self.store.get(key))
    }

    pub(crate) async fn range(&self, range: &Range, gr: &GroupResource) -> Result<RangeResponse, Status> {
        self.store.range(range).map_err(|e| crate::errors::store(e, gr))
    }

    pub(crate) async fn txn(&self, txn: Txn, gr: &GroupResource) -> Result<TxnResponse, Status> {
        // Boxed: the types of what lies below are too deep for the futures of whole calls.
        self.store.txn(txn).boxed().await.map_err(|e| crate::errors::store(e, gr))
    }
}
