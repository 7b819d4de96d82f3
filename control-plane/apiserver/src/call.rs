//! One call to a resource on its way through a verb.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use bytes::Bytes;
use coracle_api::{Gvk, Status};
use coracle_store::KeyValue;
use serde_json::Value;

use crate::admission::{Attributes, Operation, Rounds, Together};
use crate::negotiate::Accepted;
use crate::query::Query;
use crate::request::RequestContext;
use crate::resource::{ScalePaths, SubresourceAction};
use crate::stall::Connection;
use crate::state::{Served, Shared};
use crate::strategy::StrategyContext;
use crate::verbs::scale;

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
    /// What it came over; none inside the process.
    pub connection: Option<Connection>,
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

    /// The type of the objects that a call carries: the resource's, or that of the subresource.
    fn kind(&self) -> Gvk {
        let other = self.cx.subresource.as_deref().and_then(|name| self.served.subresource(name));
        match other {
            Some(sub) if sub.kind != self.served.def.kind => match &sub.group_version {
                Some((group, version)) => Gvk::new(group.as_str(), version.as_str(), sub.kind.as_str()),
                None => Gvk::new("", "v1", sub.kind.as_str()),
            },
            _ => self.served.gvk.clone(),
        }
    }

    /// Where a scale finds its numbers, if the call is to the scale of an object.
    fn scale(&self) -> Option<ScalePaths> {
        let name = self.cx.subresource.as_deref()?;
        match &self.served.subresource(name)?.action {
            SubresourceAction::Scale(paths) => Some(paths.clone()),
            _ => None,
        }
    }

    /// Runs the changing half of the admission chain: a second time, if a plugin asks for it.
    pub async fn admit(
        &self,
        operation: Operation,
        mut obj: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let (Some(paths), Some(obj)) = (self.scale(), obj.as_deref_mut()) else {
            return self.run_admit(operation, obj, old).await;
        };
        let mut seen = scale::of(obj, &paths);
        let was = old.map(|old| scale::of(old, &paths));
        self.run_admit(operation, Some(&mut seen), was.as_ref()).await?;
        scale::put_replicas(obj, &seen, &paths);
        Ok(())
    }

    async fn run_admit(
        &self,
        operation: Operation,
        mut obj: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let (together, rounds, kind) = (Together::default(), Rounds::default(), self.kind());
        let attributes = Attributes {
            operation,
            request: &self.cx,
            old,
            def: &self.served.def,
            kind: &kind,
            objects: &self.shared.objects,
            together: &together,
            rounds: &rounds,
            authorizer: &self.shared.authorizer,
        };
        loop {
            for plugin in &self.shared.admission {
                plugin.admit(&attributes, obj.as_deref_mut()).await?;
            }
            if !rounds.again() {
                return Ok(());
            }
        }
    }

    /// Runs the checking half of the admission chain; answers what is to be written with the object.
    pub async fn check_admission(
        &self,
        operation: Operation,
        obj: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<Together, Status> {
        let paths = self.scale();
        let (obj, old) = (seen(obj, paths.as_ref()), seen(old, paths.as_ref()));
        let (together, rounds, kind) = (Together::default(), Rounds::default(), self.kind());
        let attributes = Attributes {
            operation,
            request: &self.cx,
            old: old.as_deref(),
            def: &self.served.def,
            kind: &kind,
            objects: &self.shared.objects,
            together: &together,
            rounds: &rounds,
            authorizer: &self.shared.authorizer,
        };
        for plugin in &self.shared.admission {
            plugin.validate(&attributes, obj.as_deref()).await?;
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

/// An object as admission sees it: a scale is a Scale.
fn seen<'a>(obj: Option<&'a Value>, paths: Option<&ScalePaths>) -> Option<Cow<'a, Value>> {
    match paths {
        Some(paths) => obj.map(|o| Cow::Owned(scale::of(o, paths))),
        None => obj.map(Cow::Borrowed),
    }
}
