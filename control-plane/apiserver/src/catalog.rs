//! What is served: resources by path, discovery and OpenAPI. Made anew when resources come and go, and swapped in as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use crate::discovery::Discovery;
use crate::openapi::OpenApi;
use crate::resource::ResourceDef;
use crate::state::Served;

type Versions = HashMap<String, HashMap<String, Arc<Served>>>;

/// One state of what is served.
pub(crate) struct Catalog {
    /// Group, version, plural.
    routes: HashMap<String, Versions>,
    pub discovery: Discovery,
    pub openapi: OpenApi,
    address: String,
}

impl Catalog {
    /// The catalog of these resources; `address` is what clients in any network are told to use.
    pub fn new(defs: &[Arc<ResourceDef>], address: &str) -> Self {
        Self::build(defs, address, None)
    }

    /// The catalog of other resources. What both have is taken over; watches of what is gone, or not as it was, end.
    pub fn replaced(&self, defs: &[Arc<ResourceDef>]) -> Self {
        let next = Self::build(defs, &self.address, Some(self));
        for served in self.routes.values().flat_map(HashMap::values).flat_map(HashMap::values) {
            let def = &served.def;
            let stays =
                next.find(&def.group, &def.version, &def.plural).is_some_and(|s| Arc::ptr_eq(s, served));
            if !stays {
                served.retired.cancel();
            }
        }
        next
    }

    fn build(defs: &[Arc<ResourceDef>], address: &str, before: Option<&Self>) -> Self {
        let mut routes: HashMap<String, Versions> = HashMap::new();
        for def in defs {
            let known = before
                .and_then(|b| b.find(&def.group, &def.version, &def.plural))
                .filter(|served| Arc::ptr_eq(&served.def, def));
            let served = known.cloned().unwrap_or_else(|| Arc::new(Served::new(def.clone())));
            let versions = routes.entry(def.group.clone()).or_default();
            versions.entry(def.version.clone()).or_default().insert(def.plural.clone(), served);
        }
        Self {
            routes,
            discovery: Discovery::new(defs, address),
            openapi: OpenApi::new(defs, before.map(|b| &b.openapi)),
            address: address.to_owned(),
        }
    }

    /// The resource that a path names.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Served>> {
        self.routes.get(group)?.get(version)?.get(plural)
    }

    /// Whether a group and version is served at all.
    pub fn has_group_version(&self, group: &str, version: &str) -> bool {
        self.routes.get(group).is_some_and(|versions| versions.contains_key(version))
    }
}
