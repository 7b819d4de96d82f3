//! What a registered resource is: names, scope, verbs, strategy and subresources. Routes and discovery derive from it.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::schema::structural::Structural;
use coracle_api::{GroupResource, Gvk};
use serde_json::Value;

use crate::connect::SubresourceHandler;
use crate::strategy::Strategy;

/// One resource in one group and version. The server knows kinds only through this.
#[derive(Clone)]
pub struct ResourceDef {
    /// API group; empty is the core group.
    pub group: String,
    /// Served version, such as `v1`.
    pub version: String,
    /// Kind of one object.
    pub kind: String,
    /// Kind of a list, by default the kind with `List` behind it.
    pub list_kind: String,
    /// Lower-case plural, the word in the path.
    pub plural: String,
    /// Lower-case singular.
    pub singular: String,
    /// Short names that clients accept.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs in the words of discovery; by default all eight.
    pub verbs: Vec<String>,
    /// What the kind adds.
    pub strategy: Arc<dyn Strategy>,
    /// Status, scale and the like.
    pub subresources: Vec<Subresource>,
    /// Lifetime of an object after its last write (Events).
    pub ttl: Option<Duration>,
    /// The schema of objects whose type the table of types does not know.
    pub schema: Option<Arc<Structural>>,
    /// That schema as it is published.
    pub published: Option<Arc<Value>>,
    /// The kind whose merge keys hold in a strategic merge patch, for a kind that the table of types does not know.
    pub merges_as: Option<Gvk>,
    /// Group under which objects are stored, where two groups serve the same objects; by default `group`.
    pub storage_group: Option<String>,
}

/// The verbs of a resource that supports everything, in the order of discovery.
pub const ALL_VERBS: [&str; 8] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl ResourceDef {
    /// A namespaced resource with every verb and no subresources. `group` is empty for the core group.
    pub fn new(group: &str, version: &str, kind: &str, plural: &str, strategy: Arc<dyn Strategy>) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            list_kind: format!("{kind}List"),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: ALL_VERBS.iter().map(|v| v.to_string()).collect(),
            strategy,
            subresources: Vec::new(),
            ttl: None,
            schema: None,
            published: None,
            merges_as: None,
            storage_group: None,
        }
    }

    /// Makes it a cluster resource.
    pub fn cluster_scoped(mut self) -> Self {
        self.namespaced = false;
        self
    }

    /// Sets the short names.
    pub fn short_names(mut self, names: &[&str]) -> Self {
        self.short_names = names.iter().map(|n| n.to_string()).collect();
        self
    }

    /// Sets the categories.
    pub fn categories(mut self, names: &[&str]) -> Self {
        self.categories = names.iter().map(|n| n.to_string()).collect();
        self
    }

    /// Replaces the verbs.
    pub fn verbs(mut self, verbs: &[&str]) -> Self {
        self.verbs = verbs.iter().map(|n| n.to_string()).collect();
        self
    }

    /// Adds a subresource.
    pub fn subresource(mut self, subresource: Subresource) -> Self {
        self.subresources.push(subresource);
        self
    }

    /// Gives objects a lifetime.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Stores objects under another group, for kinds that two groups serve.
    pub fn stored_in(mut self, group: &str) -> Self {
        self.storage_group = Some(group.into());
        self
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Group and plural, as error messages name it.
    pub fn group_resource(&self) -> GroupResource {
        GroupResource::new(self.group.as_str(), self.plural.as_str())
    }

    /// Group, version and kind.
    pub fn gvk(&self) -> Gvk {
        Gvk::new(self.group.as_str(), self.version.as_str(), self.kind.as_str())
    }

    /// Whether the resource has this verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// The prefix of every object of this resource in the store, with a `/` at its end.
    pub fn prefix(&self) -> String {
        let group = self.storage_group.as_deref().unwrap_or(&self.group);
        let group = if group.is_empty() { "core" } else { group };
        format!("/registry/{group}/{}/", self.plural)
    }

    /// The store key of an object. `namespace` is ignored for cluster resources.
    pub fn key(&self, namespace: Option<&str>, name: &str) -> String {
        match (self.namespaced, namespace) {
            (true, Some(namespace)) => format!("{}{namespace}/{name}", self.prefix()),
            _ => format!("{}{name}", self.prefix()),
        }
    }
}

/// A path segment below an object.
#[derive(Clone)]
pub struct Subresource {
    /// The segment, such as `status`.
    pub name: String,
    /// Kind of its objects, for discovery.
    pub kind: String,
    /// Group and version of that kind where it differs from the resource's, such as (`autoscaling`, `v1`).
    pub group_version: Option<(String, String)>,
    /// Verbs in the words of discovery.
    pub verbs: Vec<String>,
    /// What it does.
    pub action: SubresourceAction,
}

/// What a subresource does.
#[derive(Clone)]
pub enum SubresourceAction {
    /// get, update and patch of `status` alone.
    Status,
    /// `autoscaling/v1` Scale over the resource's own fields.
    Scale(ScalePaths),
    /// get, update and patch of the whole object under the rules of another strategy (namespaces/finalize).
    Object(Arc<dyn Strategy>),
    /// Anything else: logs, exec, proxies, bindings, evictions.
    Handler(Arc<dyn SubresourceHandler>),
}

/// Where Scale finds its numbers: JSON pointers.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// Wanted replicas, such as `/spec/replicas`.
    pub spec_replicas: String,
    /// Observed replicas, such as `/status/replicas`.
    pub status_replicas: String,
    /// A label selector object or map, such as `/spec/selector`.
    pub selector: String,
}

impl Default for ScalePaths {
    fn default() -> Self {
        Self {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: "/spec/selector".into(),
        }
    }
}

impl Subresource {
    /// The `status` subresource of a kind.
    pub fn status(kind: &str) -> Self {
        Self::new("status", kind, &["get", "patch", "update"], SubresourceAction::Status)
    }

    /// The `scale` subresource with the usual paths.
    pub fn scale() -> Self {
        let mut s = Self::new(
            "scale",
            "Scale",
            &["get", "patch", "update"],
            SubresourceAction::Scale(ScalePaths::default()),
        );
        s.group_version = Some(("autoscaling".into(), "v1".into()));
        s
    }

    /// A subresource that a handler serves.
    pub fn handler(name: &str, kind: &str, verbs: &[&str], handler: Arc<dyn SubresourceHandler>) -> Self {
        Self::new(name, kind, verbs, SubresourceAction::Handler(handler))
    }

    /// Any subresource.
    pub fn new(name: &str, kind: &str, verbs: &[&str], action: SubresourceAction) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            group_version: None,
            verbs: verbs.iter().map(|v| v.to_string()).collect(),
            action,
        }
    }

    /// Sets group and version of the subresource's kind.
    pub fn group_version(mut self, group: &str, version: &str) -> Self {
        self.group_version = Some((group.into(), version.into()));
        self
    }
}
