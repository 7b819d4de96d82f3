//! The admission chain: plugins that see every write after defaulting and before validation.

mod rounds;

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use coracle_api::apply::{self, Apply, Node, Scope, Writer};
use coracle_api::status::Status;
use coracle_api::{Gvk, meta, schema};
use coracle_store::{Compare, Op, Txn, Value as Stored};
use serde_json::Value;

use crate::authz::Authorizer;
use crate::objects::Objects;
use crate::request::RequestContext;
use crate::resource::ResourceDef;
use crate::{codec, decode, managed};

pub use rounds::{Rounds, Turn};

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

/// Other objects that change in one transaction with the one that is written: all of them or none. If one of them was changed
/// by somebody else meanwhile, the plugins are asked again.
#[derive(Default)]
pub struct Together(Mutex<Vec<(Bytes, u64, Stored)>>);

impl Together {
    /// Adds a change. `obj` is an object as it was read, with its `resourceVersion`, and then changed.
    pub fn add(&self, objects: &Objects, group: &str, plural: &str, obj: &Value) -> Result<(), Status> {
        let def = objects.known(group, plural)?;
        let revision = meta::resource_version(obj).and_then(|v| v.parse().ok()).unwrap_or_default();
        let key = def.key(meta::namespace(obj), meta::name(obj).unwrap_or_default());
        let stored = codec::to_stored(&def, obj)?;
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((key.into(), revision, stored));
        Ok(())
    }

    /// Makes the changes part of a transaction. False: there are none.
    pub(crate) fn join(self, txn: &mut Txn) -> bool {
        let all = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let any = !all.is_empty();
        for (key, revision, value) in all {
            txn.compares.push(Compare::ModRevision(key.clone(), revision));
            txn.success.push(Op::Put { key, value, ttl_ms: None });
        }
        any
    }
}

/// What a plugin may know.
pub struct Attributes<'a> {
    /// What is being written.
    pub operation: Operation,
    /// The call; `subresource` is set for status and the like.
    pub request: &'a RequestContext,
    /// The object before the change; absent on create.
    pub old: Option<&'a Value>,
    /// The resource of the path.
    pub def: &'a ResourceDef,
    /// Type of the object at hand: the resource's own, or that of a subresource (Scale, Binding, PodExecOptions).
    pub kind: &'a Gvk,
    /// Other objects, read from memory.
    pub objects: &'a Objects,
    /// What is to be written with the object; only `validate` may add to it.
    pub together: &'a Together,
    /// Who may do what.
    pub authorizer: &'a Arc<dyn Authorizer>,
    /// What the changing half of the chain remembers when it runs a second time.
    pub rounds: &'a Rounds,
}

impl Attributes<'_> {
    /// Whether the object at hand is of another type than the resource's.
    pub fn is_other_kind(&self) -> bool {
        self.kind.kind != self.def.kind || self.kind.group != self.def.group
    }

    /// JSON that a plugin changed as an object of the call's type: known fields alone, with defaults.
    ///
    /// # Errors
    /// Fields of wrong types.
    pub fn decode(&self, changed: &Value) -> Result<Value, Status> {
        if self.is_other_kind() {
            return Ok(changed.clone());
        }
        decode::typed(self.def, changed)
    }

    /// An object with a configuration merged in, by the merge keys of its type; `form` is the resource in whose form both are.
    ///
    /// # Errors
    /// A configuration that does not fit the type, in words.
    pub fn merge(&self, obj: &Value, config: &Value, form: Option<&ResourceDef>) -> Result<Value, String> {
        let def = form.unwrap_or(self.def);
        let gvk = if self.is_other_kind() { self.kind.clone() } else { def.gvk() };
        let node = match &def.schema {
            Some(schema) if !self.is_other_kind() => Node::Object(schema),
            _ => schema::for_gvk(&gvk)
                .map(Node::Type)
                .ok_or_else(|| format!("the type of {gvk} is not known"))?,
        };
        let writer = Writer {
            manager: "admission".into(),
            operation: apply::Operation::Apply,
            api_version: gvk.api_version(),
            subresource: String::new(),
            time: String::new(),
        };
        let (mut live, mut config) = (obj.clone(), config.clone());
        meta::set_gvk(&mut config, &gvk);
        let managed = managed::take(&mut live);
        let request = Apply {
            node,
            versions: &apply::OneVersion,
            live: &live,
            exists: true,
            config: &config,
            entries: Vec::new(),
            writer: &writer,
            scope: Scope::Everything,
            force: true,
        };
        let (mut merged, _) = apply::apply(&request).map_err(|e| e.status("").message)?;
        managed::put(&mut merged, managed);
        Ok(merged)
    }

    /// Other resources that serve the same objects: other versions, or another group.
    pub fn equivalents(&self) -> Vec<Arc<ResourceDef>> {
        let prefix = self.def.prefix();
        let all = self.objects.resources();
        let same = |r: &&Arc<ResourceDef>| {
            r.prefix() == prefix && (r.group != self.def.group || r.version != self.def.version)
        };
        all.iter().filter(same).cloned().collect()
    }

    /// An object of this resource as another resource of the same objects serves it.
    ///
    /// # Errors
    /// A conversion that failed.
    pub fn convert(&self, obj: &Value, to: &ResourceDef) -> Result<Value, Status> {
        codec::convert(self.def, to, obj)
    }

    /// The other way round.
    ///
    /// # Errors
    /// A conversion that failed.
    pub fn convert_back(&self, obj: &Value, from: &ResourceDef) -> Result<Value, Status> {
        codec::convert(from, self.def, obj)
    }
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
