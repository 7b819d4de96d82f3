//! Pure: Ingresses, Knative routes, Services and EndpointSlices in, one table of hosts and paths out.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

mod endpoints;
mod ingress;
mod knative;
#[cfg(test)]
mod tests;

pub use endpoints::Services;
pub use ingress::{CLASSES, is_ours};

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use crate::knative::KnativeIngress;
use crate::meters::RevisionKey;

/// The label of a Service whose pods may be scaled to zero: the name of its revision.
pub const REVISION_LABEL: &str = "serving.knative.dev/revision";
/// Most requests that a pod of a revision takes at a time, on its Service; absent or 0 means any number.
pub const CONCURRENCY_ANNOTATION: &str = "serving.knative.dev/containerConcurrency";

/// Where requests go. Never changes: a new one is built when anything in the cluster does.
#[derive(Default, Debug)]
pub struct Table {
    hosts: HashMap<String, Vec<Rule>>,
    /// `*.example.com` as `.example.com`.
    wildcards: HashMap<String, Vec<Rule>>,
    /// For every host.
    any: Vec<Rule>,
    backends: HashMap<BackendKey, Arc<Backend>>,
}

/// A path of a host and what it leads to.
#[derive(Clone, Debug)]
pub struct Rule {
    matcher: Matcher,
    /// Replaces the matched part of the path (`nginx.ingress.kubernetes.io/rewrite-target` without groups).
    rewrite: Option<String>,
    /// Backends and their weights; at least one, and a sum above 0.
    backends: Vec<(Arc<Backend>, u32)>,
}

/// How a rule compares paths; as `pathType` of an Ingress says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Matcher {
    Exact(String),
    /// By elements: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

/// A port of a Service.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BackendKey {
    pub namespace: String,
    pub service: String,
    pub port: PortName,
}

/// A Service's port as an Ingress names it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum PortName {
    Number(i32),
    Name(String),
}

/// A port of a Service and its ready endpoints.
#[derive(Debug, PartialEq, Eq)]
pub struct Backend {
    pub key: BackendKey,
    pub endpoints: Vec<SocketAddr>,
    /// The revision whose pods are behind it, where there is one: requests wait for its first pod.
    pub revision: Option<String>,
    /// Most requests at a time for one endpoint; 0 is any number.
    pub concurrency: u32,
}

/// Where a request goes, and as which path.
#[derive(Debug)]
pub struct Target {
    pub backend: Arc<Backend>,
    /// The path without the query, where a rule changes it.
    pub path: Option<String>,
}

impl Table {
    /// Builds the table of a cluster.
    pub fn new<'a>(
        ingresses: impl Iterator<Item = &'a Ingress>,
        classes: impl Iterator<Item = &'a IngressClass>,
        routes: impl Iterator<Item = &'a KnativeIngress>,
        services: &Services,
    ) -> Self {
        let mut table = Self::default();
        ingress::add(&mut table, ingresses, classes, services);
        knative::add(&mut table, routes, services);
        for rules in table.hosts.values_mut().chain(table.wildcards.values_mut()).chain([&mut table.any]) {
            rules.sort_by_key(|rule| std::cmp::Reverse(rule.matcher.rank()));
        }
        table
    }

    /// Where a request for a host (without its port, any case) and a path goes. `draw` is a random number.
    pub fn find(&self, host: &str, path: &str, draw: u32) -> Option<Target> {
        let host = host.to_ascii_lowercase();
        let wildcard = host.find('.').and_then(|dot| self.wildcards.get(host.get(dot..)?));
        let candidates = [self.hosts.get(&host), wildcard, Some(&self.any)];
        let rule = candidates
            .into_iter()
            .flatten()
            .find_map(|rules| rules.iter().find(|r| r.matcher.matches(path)))?;
        Some(Target { backend: rule.choose(draw)?, path: rule.rewritten(path) })
    }

    /// The present state of a backend, None once its Service or its last route is gone.
    pub fn backend(&self, key: &BackendKey) -> Option<&Arc<Backend>> {
        self.backends.get(key)
    }

    /// Whether any rule leads to a revision.
    pub fn has(&self, revision: &RevisionKey) -> bool {
        self.backends.values().any(|backend| {
            backend.revision.as_ref() == Some(&revision.revision)
                && backend.key.namespace == revision.namespace
        })
    }

    fn add(&mut self, host: Option<&str>, rule: Rule) {
        let rules = match host.filter(|host| !host.is_empty() && *host != "*") {
            None => &mut self.any,
            Some(host) => match host.strip_prefix('*') {
                Some(suffix) => self.wildcards.entry(suffix.to_ascii_lowercase()).or_default(),
                None => self.hosts.entry(host.to_ascii_lowercase()).or_default(),
            },
        };
        // The first of two equal rules stays: they come in order of age.
        if !rules.iter().any(|other| other.matcher == rule.matcher) {
            rules.push(rule);
        }
    }

    fn intern(&mut self, key: BackendKey, services: &Services) -> Arc<Backend> {
        self.backends.entry(key).or_insert_with_key(|key| Arc::new(services.backend(key))).clone()
    }
}

impl Rule {
    fn choose(&self, draw: u32) -> Option<Arc<Backend>> {
        let total: u32 = self.backends.iter().map(|(_, weight)| weight).sum();
        let mut left = draw.checked_rem(total)?;
        for (backend, weight) in &self.backends {
            if left < *weight {
                return Some(backend.clone());
            }
            left -= weight;
        }
        None
    }

    fn rewritten(&self, path: &str) -> Option<String> {
        let target = self.rewrite.as_deref()?;
        let rest = match &self.matcher {
            Matcher::Exact(_) => "",
            Matcher::Prefix(prefix) => path.get(prefix.trim_end_matches('/').len()..).unwrap_or_default(),
        };
        // Like nginx: the target replaces the whole path, unless it ends in what was matched after the prefix ($1, $2).
        let capture = target.find('$').map(|at| target.get(..at).unwrap_or_default());
        Some(match capture {
            Some(head) => format!("{}/{}", head.trim_end_matches('/'), rest.trim_start_matches('/')),
            None => target.to_owned(),
        })
    }
}

impl Matcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(wanted) => path == wanted,
            Self::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }

    /// Longer paths first, exact before prefix.
    fn rank(&self) -> (usize, bool) {
        match self {
            Self::Exact(path) => (path.len(), true),
            Self::Prefix(path) => (path.trim_end_matches('/').len(), false),
        }
    }
}

/// Objects of one kind in the order in which they were made, then by name.
fn by_age<'a, K: kube::ResourceExt + 'a>(objects: impl Iterator<Item = &'a K>) -> Vec<&'a K> {
    let mut ordered: BTreeMap<_, &K> = BTreeMap::new();
    for object in objects {
        let age = object.creation_timestamp().map(|time| time.0);
        ordered.insert((age, object.namespace(), object.name_any()), object);
    }
    ordered.into_values().collect()
}
