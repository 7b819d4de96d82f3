//! One call to a resource on its way through a verb.

use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::Status;
use coracle_store::KeyValue;
use serde_json::Value;

use crate::admission::{Attributes, Operation, Together};
use crate::negotiate::Accepted;
use crate::query::Query;
use crate::request::RequestContext;
use crate::state::{Served, Shared};
use crate::strategy::StrategyContext;

/// What a verb works on: one object or collection, by one caller.
#[derive(Clone)]
pub(crate) struct Target {
    pub shared: Arc<Shared>,
    pub served: Arc<Served>,
    pub cx: RequestContext,
}

/// An authenticated and authorized call.
pub(crate) struct Call {
    pub target: Target,
    pub query: Query,
    pub accepted: Accepted,
    pub headers: http::HeaderMap,
    /// The body, read whole; empty for reads.
    pub body: Bytes,
}

impl Deref for Call {
    type Target = Target;
    fn deref(&self) -> &Target {
        &self.target
    }
}

impl Target {
    /// What strategies see.
    pub fn strategy_context(&self) -> StrategyContext<'_> {
        StrategyContext { request: &self.cx, objects: &self.shared.objects }
    }

    fn attributes<'a>(
        &'a self,
        operation: Operation,
        old: Option<&'a Value>,
        together: &'a Together,
    ) -> Attributes<'a> {
        Attributes { operation, request: &self.cx, old, objects: &self.shared.objects, together }
    }

    /// Runs the changing half of the admission chain.
    pub async fn admit(
        &self,
        operation: Operation,
        mut obj: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let none = Together::default();
        for plugin in &self.shared.admission {
            plugin.admit(&self.attributes(operation, old, &none), obj.as_deref_mut()).await?;
        }
        Ok(())
    }

    /// Runs the checking half of the admission chain; answers what is to be written with the object.
    pub async fn check_admission(
        &self,
        operation: Operation,
        obj: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<Together, Status> {
        let together = Together::default();
        for plugin in &self.shared.admission {
            plugin.validate(&self.attributes(operation, old, &together), obj).await?;
        }
        Ok(together)
    }

    /// The name in the path.
    pub fn name(&self) -> &str {
        self.cx.name.as_deref().unwrap_or("")
    }

    /// The store key of the object that the path names.
    pub fn key(&self) -> Bytes {
        self.served.key(self.cx.namespace.as_deref(), self.name())
    }

    /// 404 for that object.
    pub fn not_found(&self) -> Status {
        Status::not_found(&self.served.gr, self.name())
    }

    /// The stored object that the path names; 404 if there is none.
    pub async fn fetch(&self) -> Result<Arc<KeyValue>, Status> {
        self.shared.objects.fetch(&self.key(), &self.served.gr).await?.ok_or_else(|| self.not_found())
    }
}
