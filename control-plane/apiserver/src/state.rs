//! What a running server knows: resources by path, and the chains that every call passes.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use coracle_api::{GroupResource, Gvk};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::audit::Audit;
use crate::authn::{Anonymous, TokenAuthenticator};
use crate::authz::Authorizer;
use crate::delegate::{Delegated, Delegates};
use crate::dynamic::{Current, Dynamic};
use crate::flow::Flows;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::resource::{ResourceDef, Subresource};
use crate::select::FieldCache;

/// A resource with everything that is derived from it once.
pub(crate) struct Served {
    pub def: Arc<ResourceDef>,
    pub gr: GroupResource,
    pub gvk: Gvk,
    pub api_version: String,
    /// Store prefix of all its objects.
    pub prefix: String,
    /// What every stored object begins with; lists leave it out. Empty for custom objects, of which lists leave out nothing.
    pub head: Vec<u8>,
    pub fields: FieldCache,
    /// How many objects the last list of all went over.
    pub listed: AtomicU64,
    /// An object before anybody set anything.
    pub blank: Value,
    /// Cancelled when the resource is no longer served as it is here.
    pub retired: CancellationToken,
}

impl Served {
    pub fn new(def: Arc<ResourceDef>) -> Self {
        let api_version = def.api_version();
        let mut served = Self {
            gr: def.group_resource(),
            gvk: def.gvk(),
            prefix: def.prefix(),
            head: match def.schema {
                Some(_) => Vec::new(),
                None => crate::codec::head(&def.kind, &api_version),
            },
            api_version,
            fields: FieldCache::new(def.strategy.all_selectable_fields().count()),
            retired: CancellationToken::new(),
            blank: Value::Null,
            listed: AtomicU64::new(0),
            def,
        };
        served.blank = crate::managed::blank(&served);
        served
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.def.subresources.iter().find(|s| s.name == name)
    }

    /// The store key of an object.
    pub fn key(&self, namespace: Option<&str>, name: &str) -> bytes::Bytes {
        let mut key =
            String::with_capacity(self.prefix.len() + name.len() + 1 + namespace.map_or(0, str::len));
        key.push_str(&self.prefix);
        if let (true, Some(namespace)) = (self.def.namespaced, namespace) {
            key.push_str(namespace);
            key.push('/');
        }
        key.push_str(name);
        key.into()
    }

    /// The store prefix of a list: one namespace, or all.
    pub fn list_prefix(&self, namespace: Option<&str>) -> String {
        match (self.def.namespaced, namespace) {
            (true, Some(namespace)) => format!("{}{namespace}/", self.prefix),
            _ => self.prefix.clone(),
        }
    }

    /// Time to live of a write, in milliseconds.
    pub fn ttl_ms(&self) -> Option<u64> {
        self.def.ttl.map(|t| t.as_millis().try_into().unwrap_or(u64::MAX))
    }
}

/// Everything that calls share.
pub(crate) struct Shared {
    pub objects: Objects,
    pub catalog: Current,
    pub dynamic: Option<Arc<Dynamic>>,
    /// Who serves other groups.
    pub delegates: Option<Arc<dyn Delegates>>,
    pub tokens: Vec<Arc<dyn TokenAuthenticator>>,
    pub anonymous: Anonymous,
    pub authorizer: Arc<dyn Authorizer>,
    pub admission: Vec<Arc<dyn Admission>>,
    pub mounts: Vec<(String, Router)>,
    /// Those of [`Shared::mounts`] whose clients are asked for passwords.
    pub passwords: Vec<String>,
    pub metrics: Arc<Metrics>,
    pub shutdown: CancellationToken,
    /// Who of the calls from outside is served when.
    pub flows: Flows,
    /// Where calls are told, if anywhere.
    pub audit: Option<Arc<Audit>>,
    /// How often open streams are looked at.
    pub stall: Duration,
}

impl Shared {
    /// The resource that a path names. One that was defined a moment ago is waited for.
    pub async fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        if let Some(served) = self.catalog.load().find(group, version, plural) {
            return Some(served.clone());
        }
        self.catch_up().await;
        self.catalog.load().find(group, version, plural).cloned()
    }

    /// The other server of a group and version, if there is one.
    pub fn delegate(&self, group: &str, version: &str) -> Option<&Arc<dyn Delegates>> {
        self.delegates.as_ref().filter(|d| d.has(group, version))
    }

    /// What other servers serve.
    pub fn delegated(&self) -> Arc<Vec<Delegated>> {
        self.delegates.as_ref().map(|d| d.all()).unwrap_or_default()
    }

    /// Waits until every resource that is defined is served.
    pub async fn catch_up(&self) {
        if let Some(dynamic) = &self.dynamic {
            dynamic.catch_up(self.objects.store()).await;
        }
    }
}
