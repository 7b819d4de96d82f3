//! Reads and guarded writes of any registered object, for strategies, admission plugins and subresource handlers.

use std::sync::Arc;

use coracle_api::status::Status;
use coracle_store::Store;
use serde_json::Value;

use crate::resource::ResourceDef;

/// A cheap handle on the store and on what is registered.
#[derive(Clone)]
pub struct Objects {
    pub(crate) store: Arc<Store>,
    pub(crate) resources: Arc<Vec<Arc<ResourceDef>>>,
}

impl Objects {
    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// A registered resource by group and plural.
    pub fn resource(&self, group: &str, plural: &str) -> Option<&Arc<ResourceDef>> {
        self.resources.iter().find(|r| r.group == group && r.plural == plural)
    }

    /// One object with its `resourceVersion`, or `None`.
    pub async fn get(&self, _group: &str, _plural: &str, _namespace: Option<&str>, _name: &str) -> Result<Option<Value>, Status> {
        todo!()
    }

    /// All objects of a resource, in one namespace or in all.
    pub async fn list(&self, _group: &str, _plural: &str, _namespace: Option<&str>) -> Result<Vec<Value>, Status> {
        todo!()
    }

    /// Reads, changes and writes an object until no other writer came between (bounded). Neither admission nor
    /// validation runs. NotFound if it does not exist.
    pub async fn update<F>(&self, _group: &str, _plural: &str, _namespace: Option<&str>, _name: &str, _change: F) -> Result<Value, Status>
    where
        F: FnMut(&mut Value) -> Result<(), Status> + Send,
    {
        todo!()
    }
}
