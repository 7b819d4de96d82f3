//! Which resources the API server serves, looked up again and again because they change.

use std::sync::Arc;

use kube::Client;
use kube::core::ApiResource;
use kube::discovery::{Discovery, Scope, verbs};

/// A served resource.
#[derive(Clone, Debug)]
pub struct Served {
    /// Group, version, kind and plural.
    pub resource: ApiResource,
    /// Whether its objects live in a namespace.
    pub namespaced: bool,
    /// Whether a collection can be deleted in one call.
    pub deletes_collections: bool,
}

impl Served {
    /// The path of an object, or of the collection when `name` is empty.
    pub fn path(&self, namespace: &str, name: &str) -> String {
        let r = &self.resource;
        let mut path = if r.group.is_empty() {
            format!("/api/{}", r.version)
        } else {
            format!("/apis/{}/{}", r.group, r.version)
        };
        if self.namespaced && !namespace.is_empty() {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push_str(&format!("/{}", r.plural));
        if !name.is_empty() {
            path.push_str(&format!("/{name}"));
        }
        path
    }
}

/// Every resource, in its preferred version, that can be listed, watched and deleted.
pub async fn deletable(client: &Client) -> kube::Result<Vec<Arc<Served>>> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let resources = discovery.groups().flat_map(|g| g.recommended_resources());
    let usable = resources.filter(|(_, can)| {
        [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| can.supports_operation(verb))
    });
    let served = usable.map(|(resource, can)| {
        Arc::new(Served {
            namespaced: can.scope == Scope::Namespaced,
            deletes_collections: can.supports_operation(verbs::DELETE_COLLECTION),
            resource,
        })
    });
    Ok(served.collect())
}
