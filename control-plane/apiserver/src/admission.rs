//! The admission chain: plugins that see every write after defaulting and before validation.

use async_trait::async_trait;
use coracle_api::status::Status;
use serde_json::Value;

use crate::objects::Objects;
use crate::request::RequestContext;

/// What is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new object, or a subresource that is created (binding, eviction).
    Create,
    /// A change by update or patch.
    Update,
    /// A deletion.
    Delete,
    /// A connection: exec, attach, portforward, proxy, log.
    Connect,
}

/// What a plugin may know.
pub struct Attributes<'a> {
    /// What is being written.
    pub operation: Operation,
    /// The call; `subresource` is set for status and the like.
    pub request: &'a RequestContext,
    /// The object before the change; absent on create.
    pub old: Option<&'a Value>,
    /// Other objects, read from memory.
    pub objects: &'a Objects,
}

/// One plugin. Plugins run in the order of registration; the first error ends the call.
#[async_trait]
pub trait Admission: Send + Sync + 'static {
    /// Name for logs and metrics.
    fn name(&self) -> &'static str;

    /// May change the object. `None` on delete and connect.
    async fn admit(&self, _attributes: &Attributes<'_>, _obj: Option<&mut Value>) -> Result<(), Status> {
        Ok(())
    }

    /// Sees the object as it will be stored, after the strategy's validation.
    async fn validate(&self, _attributes: &Attributes<'_>, _obj: Option<&Value>) -> Result<(), Status> {
        Ok(())
    }
}
