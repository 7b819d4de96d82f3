//! Roles and bindings in memory, by subject: what a call asks needs no allocation and no look at the store.

use std::collections::HashMap;

use coracle_apiserver::UserInfo;
use serde_json::Value;

use super::rules::Rule;
use crate::authn::service_account;
use crate::value::{items, text};

/// One subject of one binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The key of the binding: `<namespace>/<name>`, or `<name>` for the whole cluster.
    binding: String,
    /// Namespace of the role; empty for a ClusterRole.
    role_namespace: String,
    /// Name of the role.
    role: String,
    /// `User "jane"`.
    subject: String,
}

#[derive(Default)]
struct Subjects {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
}

/// Everything that roles and bindings say.
#[derive(Default)]
pub struct Index {
    /// Rules by namespace (empty: ClusterRoles) and name.
    roles: HashMap<String, HashMap<String, Vec<Rule>>>,
    /// Grants by namespace (empty: the whole cluster).
    grants: HashMap<String, Subjects>,
    /// The subjects of each binding by its key, to take them away again.
    bindings: HashMap<String, Vec<Subject>>,
}

/// Whom a binding names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    User(String),
    Group(String),
}

/// Namespace and name below a key's prefix; the namespace is empty for an object of the cluster.
fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

impl Index {
    /// Takes in an object of one of the four kinds; `None` for one that is gone. `key` is `<plural>/<namespace>/<name>`.
    pub fn put(&mut self, key: &str, object: Option<&Value>) {
        let Some((plural, rest)) = key.split_once('/') else { return };
        match (plural, object) {
            ("roles" | "clusterroles", Some(role)) => {
                let (namespace, name) = split(rest);
                let roles = self.roles.entry(namespace.to_owned()).or_default();
                roles.insert(name.to_owned(), Rule::of_role(role));
            }
            ("roles" | "clusterroles", None) => {
                let (namespace, name) = split(rest);
                if let Some(roles) = self.roles.get_mut(namespace) {
                    roles.remove(name);
                }
            }
            ("rolebindings" | "clusterrolebindings", binding) => self.bind(rest, binding),
            _ => {}
        }
    }

    fn bind(&mut self, key: &str, binding: Option<&Value>) {
        let (namespace, _) = split(key);
        let subjects = self.grants.entry(namespace.to_owned()).or_default();
        for subject in self.bindings.remove(key).unwrap_or_default() {
            let (map, name) = match &subject {
                Subject::User(name) => (&mut subjects.users, name),
                Subject::Group(name) => (&mut subjects.groups, name),
            };
            if let Some(grants) = map.get_mut(name) {
                grants.retain(|grant| grant.binding != key);
                if grants.is_empty() {
                    map.remove(name);
                }
            }
        }
        let Some(binding) = binding else { return };
        let to_cluster_role = text(binding, "/roleRef/kind") == "ClusterRole";
        let mut named = Vec::new();
        for subject in items(binding, "/subjects") {
            let Some((who, words)) = subject_of(subject) else { continue };
            let grant = Grant {
                binding: key.to_owned(),
                role_namespace: if to_cluster_role { String::new() } else { namespace.to_owned() },
                role: text(binding, "/roleRef/name").to_owned(),
                subject: words,
            };
            match &who {
                Subject::User(name) => subjects.users.entry(name.clone()).or_default().push(grant),
                Subject::Group(name) => subjects.groups.entry(name.clone()).or_default().push(grant),
            }
            named.push(who);
        }
        self.bindings.insert(key.to_owned(), named);
    }

    /// The rules of a role; `None` if there is no such role. An empty namespace means a ClusterRole.
    pub fn role(&self, namespace: &str, name: &str) -> Option<&[Rule]> {
        self.roles.get(namespace)?.get(name).map(Vec::as_slice)
    }

    /// The first grant to a user, in the whole cluster or in a namespace, of which `accept` says yes. It is given the rules
    /// of the role, or `None` for a role that does not exist.
    pub fn find<'a>(
        &'a self,
        user: &UserInfo,
        namespace: Option<&str>,
        mut accept: impl FnMut(&'a Grant, Option<&'a [Rule]>) -> bool,
    ) -> Option<&'a Grant> {
        let scopes = [Some(""), namespace.filter(|n| !n.is_empty())];
        for subjects in scopes.into_iter().flatten().filter_map(|scope| self.grants.get(scope)) {
            let by_user = subjects.users.get(user.name.as_str());
            let by_group = user.groups.iter().filter_map(|group| subjects.groups.get(group.as_str()));
            for grant in by_user.into_iter().chain(by_group).flatten() {
                if accept(grant, self.role(&grant.role_namespace, &grant.role)) {
                    return Some(grant);
                }
            }
        }
        None
    }
}

impl Grant {
    /// Why something is allowed, in Kubernetes' words.
    pub fn reason(&self) -> String {
        let (namespace, name) = split(&self.binding);
        let (kind, shown) = match namespace {
            "" => ("ClusterRoleBinding", name.to_owned()),
            _ => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let role = if self.role_namespace.is_empty() { "ClusterRole" } else { "Role" };
        format!("RBAC: allowed by {kind} {shown:?} of {role} {:?} to {}", self.role, self.subject)
    }

    /// What is wrong with a grant of a role that does not exist.
    pub fn no_role(&self) -> String {
        let kind = if self.role_namespace.is_empty() { "clusterrole" } else { "role" };
        format!("{kind}.rbac.authorization.k8s.io {:?} not found", self.role)
    }
}

fn subject_of(subject: &Value) -> Option<(Subject, String)> {
    let (name, namespace) = (text(subject, "/name"), text(subject, "/namespace"));
    match text(subject, "/kind") {
        "User" => Some((Subject::User(name.to_owned()), format!("User {name:?}"))),
        "Group" => Some((Subject::Group(name.to_owned()), format!("Group {name:?}"))),
        "ServiceAccount" => {
            let user = service_account::account(namespace, name).name;
            Some((Subject::User(user), format!("ServiceAccount \"{name}/{namespace}\"")))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn grants_come_and_go() {
        let mut index = Index::default();
        index.put("roles/a/r", Some(&json!({"rules": [{"verbs": ["get"]}]})));
        let binding = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [
            {"kind": "User", "name": "jane"}, {"kind": "Group", "name": "g"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "b"},
        ]});
        index.put("rolebindings/a/rb", Some(&binding));
        let find = |index: &Index, user: &UserInfo, namespace: Option<&str>| {
            index.find(user, namespace, |_, rules| rules.is_some()).map(Grant::reason)
        };
        let jane = UserInfo::new("jane", &[]);
        let words = "RBAC: allowed by RoleBinding \"rb/a\" of Role \"r\" to User \"jane\"";
        assert_eq!(find(&index, &jane, Some("a")).as_deref(), Some(words));
        assert_eq!(find(&index, &jane, None), None);
        assert_eq!(find(&index, &jane, Some("b")), None);
        assert!(find(&index, &UserInfo::new("x", &["g"]), Some("a")).is_some());
        assert!(find(&index, &service_account::account("b", "s"), Some("a")).is_some());
        index.put("roles/a/r", None);
        assert_eq!(find(&index, &jane, Some("a")), None);
        assert!(index.find(&jane, Some("a"), |_, rules| rules.is_none()).is_some());
        index.put("rolebindings/a/rb", None);
        assert!(index.find(&jane, Some("a"), |_, _| true).is_none());
    }
}
