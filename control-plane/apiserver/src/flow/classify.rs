//! Which schema a call is of.

use super::{FlowRule, FlowSchema, PathRule, ResourceRule, Subject};
use crate::path::ResourcePath;
use crate::request::UserInfo;

const ACCOUNT: &str = "system:serviceaccount:";

/// A call as schemas see it.
pub(crate) struct Ask<'a> {
    pub user: &'a UserInfo,
    pub verb: &'a str,
    pub what: What<'a>,
}

/// What a call is about.
pub(crate) enum What<'a> {
    Resource(&'a ResourcePath),
    Path(&'a str),
}

impl FlowSchema {
    /// Whether a call is of this schema.
    pub(super) fn matches(&self, ask: &Ask<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(ask))
    }
}

impl FlowRule {
    fn matches(&self, ask: &Ask<'_>) -> bool {
        self.subjects.iter().any(|s| s.matches(ask.user))
            && match &ask.what {
                What::Resource(path) => self.resources.iter().any(|r| r.matches(ask.verb, path)),
                What::Path(path) => self.paths.iter().any(|r| r.matches(ask.verb, path)),
            }
    }
}

impl Subject {
    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == user.name,
            Self::Group(name) => name == "*" || user.in_group(name),
            Self::ServiceAccount(namespace, name) => {
                let account = user.name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'));
                account.is_some_and(|(ns, n)| ns == namespace && (name == "*" || name == n))
            }
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

impl ResourceRule {
    fn matches(&self, verb: &str, path: &ResourcePath) -> bool {
        let scope = match path.namespace.as_deref().or(namespace_itself(path)) {
            Some(namespace) => has(&self.namespaces, namespace),
            None => self.cluster_scope,
        };
        scope && has(&self.verbs, verb) && has(&self.groups, &path.group) && self.names(path)
    }

    fn names(&self, path: &ResourcePath) -> bool {
        self.resources.iter().any(|entry| match (&path.subresource, entry.split_once('/')) {
            _ if entry == "*" => true,
            (None, None) => *entry == path.resource,
            (Some(sub), Some((resource, of))) => {
                (resource == "*" || resource == path.resource) && (of == "*" || of == sub)
            }
            _ => false,
        })
    }
}

/// Calls to a namespace object are calls inside it, as for authorization.
fn namespace_itself(path: &ResourcePath) -> Option<&str> {
    path.name.as_deref().filter(|_| path.group.is_empty() && path.resource == "namespaces")
}

impl PathRule {
    fn matches(&self, verb: &str, path: &str) -> bool {
        has(&self.verbs, verb)
            && self.paths.iter().any(|entry| match entry.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => entry == path,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    fn path(text: &str) -> ResourcePath {
        crate::path::parse(text).expect("resource path")
    }

    #[test]
    fn resources_are_matched_by_scope_group_and_name() {
        let rule = ResourceRule {
            verbs: words(&["get", "update"]),
            groups: words(&["", "coordination.k8s.io"]),
            resources: words(&["nodes", "nodes/status", "leases"]),
            cluster_scope: true,
            namespaces: words(&["kube-node-lease"]),
        };
        assert!(rule.matches("get", &path("/api/v1/nodes/a")));
        assert!(rule.matches("update", &path("/api/v1/nodes/a/status")));
        assert!(!rule.matches("update", &path("/api/v1/nodes/a/proxy")));
        assert!(!rule.matches("delete", &path("/api/v1/nodes/a")));
        let lease = |ns: &str| path(&format!("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases/a"));
        assert!(rule.matches("get", &lease("kube-node-lease")) && !rule.matches("get", &lease("default")));
        assert!(!rule.matches("get", &path("/apis/apps/v1/nodes/a")));
        assert!(!ResourceRule { cluster_scope: false, ..rule }.matches("get", &path("/api/v1/nodes/a")));
    }

    #[test]
    fn subjects_and_paths() {
        let account = UserInfo::new("system:serviceaccount:kube-system:dns", &["system:serviceaccounts"]);
        assert!(Subject::ServiceAccount("kube-system".into(), "*".into()).matches(&account));
        assert!(!Subject::ServiceAccount("default".into(), "*".into()).matches(&account));
        assert!(Subject::Group("system:serviceaccounts".into()).matches(&account));
        assert!(!Subject::User("dns".into()).matches(&account));
        let rule = PathRule { verbs: words(&["get"]), paths: words(&["/livez", "/debug/*"]) };
        assert!(rule.matches("get", "/livez") && rule.matches("get", "/debug/x"));
        assert!(!rule.matches("get", "/livez/ping") && !rule.matches("post", "/livez"));
    }
}
