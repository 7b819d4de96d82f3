//! What a node may do: what Kubernetes' node authorizer allows. Its own objects, and of Secrets, ConfigMaps, claims and
//! service accounts only those of pods that are bound to it.

mod needs;

use std::collections::HashMap;

use super::rules::Rule;
use coracle_apiserver::{AuthorizationRequest, UserInfo};
use coracle_store::{EventKind, Range, Store, Watch};
use needs::{Kind, Needs, Pod};
use parking_lot::Mutex;

const PREFIX: &str = "/registry/core/pods/";
/// The group of all nodes.
pub const GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

/// Needs by namespace and pod, and how many pods of a node need each object.
#[derive(Default)]
struct Graph {
    pods: HashMap<String, Needs>,
    /// By node; then kind, namespace, name.
    nodes: HashMap<String, HashMap<(Kind, String, String), u32>>,
}

/// Decides for nodes.
pub struct NodeAuthorizer {
    store: Store,
    /// Follows the pods; idle until a node asks for something that a pod must need.
    graph: Mutex<(Graph, Option<Watch>)>,
    rules: Vec<Rule>,
}

/// The name of the node that a user is.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX).filter(|n| !n.is_empty())?;
    user.in_group(GROUP).then_some(name)
}

impl NodeAuthorizer {
    /// A node's rights over the pods in a store.
    pub fn new(store: Store) -> Self {
        Self { store, graph: Mutex::default(), rules: super::defaults::node_rules() }
    }

    /// Whether the caller is a node that may do this.
    pub fn allows(&self, ask: &AuthorizationRequest<'_>) -> bool {
        let Some(node) = node_of(ask.user) else { return false };
        if !ask.is_resource {
            return false;
        }
        let reads = matches!(ask.verb, "get" | "list" | "watch");
        let needed = |kind| match (ask.namespace, ask.name) {
            (Some(namespace), Some(name)) => self.needs(node, kind, namespace, name),
            _ => false,
        };
        match (ask.group, ask.resource, ask.subresource) {
            ("", "secrets", None) => reads && needed(Kind::Secret),
            ("", "configmaps", None) => reads && needed(Kind::ConfigMap),
            ("", "serviceaccounts", None) => ask.verb == "get" && needed(Kind::Account),
            // A node removes the data of volumes that lie on it, and then its finalizer.
            ("", "persistentvolumes", None) => reads || ask.verb == "patch",
            ("", "persistentvolumeclaims", None) => ask.verb == "get" && needed(Kind::Claim),
            ("", "persistentvolumeclaims", Some("status")) => {
                matches!(ask.verb, "get" | "update" | "patch") && needed(Kind::Claim)
            }
            ("", "serviceaccounts", Some("token")) => ask.verb == "create" && needed(Kind::Account),
            ("coordination.k8s.io", "leases", None) => {
                let own =
                    ask.name.is_none_or(|name| name == node) && ask.namespace == Some("kube-node-lease");
                own && matches!(ask.verb, "get" | "create" | "update" | "patch" | "delete")
            }
            ("storage.k8s.io", "csinodes", None) => {
                let own = ask.name.is_none_or(|name| name == node);
                own && matches!(ask.verb, "get" | "create" | "update" | "patch" | "delete")
            }
            _ => self.rules.iter().any(|rule| rule.allows(ask)),
        }
    }

    fn needs(&self, node: &str, kind: Kind, namespace: &str, name: &str) -> bool {
        let mut guard = self.graph.lock();
        let (graph, watch) = &mut *guard;
        self.refresh(graph, watch);
        let key = (kind, namespace.to_owned(), name.to_owned());
        graph.nodes.get(node).is_some_and(|objects| objects.contains_key(&key))
    }

    fn refresh(&self, graph: &mut Graph, watch: &mut Option<Watch>) {
        loop {
            let Some(events) = watch.as_mut() else {
                if let Err(error) = self.reload(graph, watch) {
                    tracing::error!(%error, "reading pods for the node authorizer");
                    return;
                }
                continue;
            };
            match events.try_next() {
                Ok(None) => return,
                Ok(Some(event)) => {
                    let json = (event.kind == EventKind::Put).then_some(&event.kv.value.json[..]);
                    graph.put(&event.kv.key, json);
                }
                Err(_) => *watch = None,
            }
        }
    }

    fn reload(&self, graph: &mut Graph, watch: &mut Option<Watch>) -> Result<(), coracle_store::Error> {
        let found = self.store.range(&Range::prefix(PREFIX))?;
        *graph = Graph::default();
        for kv in &found.kvs {
            graph.put(&kv.key, Some(&kv.value.json));
        }
        *watch = Some(self.store.watch(PREFIX.into(), found.revision)?);
        Ok(())
    }
}

impl Graph {
    /// Takes in a pod; `None` for one that is gone.
    fn put(&mut self, key: &[u8], json: Option<&[u8]>) {
        let Some(key) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(PREFIX)) else {
            return;
        };
        let Some((namespace, _)) = key.split_once('/') else { return };
        let needs = json.and_then(|json| serde_json::from_slice::<Pod>(json).ok()).and_then(Pod::needs);
        if self.pods.get(key) == needs.as_ref() {
            return;
        }
        if let Some(old) = self.pods.remove(key)
            && let Some(objects) = self.nodes.get_mut(&old.node)
        {
            for (kind, name) in old.objects {
                let counted = (kind, namespace.to_owned(), name);
                if let Some(count) = objects.get_mut(&counted) {
                    *count -= 1;
                    if *count == 0 {
                        objects.remove(&counted);
                    }
                }
            }
            if objects.is_empty() {
                self.nodes.remove(&old.node);
            }
        }
        let Some(new) = needs else { return };
        let objects = self.nodes.entry(new.node.clone()).or_default();
        for (kind, name) in &new.objects {
            *objects.entry((*kind, namespace.to_owned(), name.clone())).or_default() += 1;
        }
        self.pods.insert(key.to_owned(), new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn put(graph: &mut Graph, pod: Option<&Value>) {
        let json = pod.map(Value::to_string);
        graph.put(b"/registry/core/pods/ns/p", json.as_deref().map(str::as_bytes));
    }

    #[test]
    fn what_pods_need() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "serviceAccountName": "default",
            "volumes": [
                {"name": "a", "secret": {"secretName": "s1"}}, {"name": "b", "configMap": {"name": "c1"}},
                {"name": "c", "projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "c2"}}]}},
                {"name": "d", "persistentVolumeClaim": {"claimName": "v1"}}, {"name": "e", "ephemeral": {"x": 1}},
            ],
            "containers": [{"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s3", "key": "k"}}}],
                "envFrom": [{"configMapRef": {"name": "c3"}}]}],
        }});
        let mut graph = Graph::default();
        put(&mut graph, Some(&pod));
        assert!(graph.nodes.is_empty(), "it is not bound yet");
        pod["spec"]["nodeName"] = "n".into();
        put(&mut graph, Some(&pod));
        let mut found: Vec<String> =
            graph.nodes["n"].keys().map(|(kind, _, name)| format!("{kind:?} {name}")).collect();
        found.sort();
        assert_eq!(
            found,
            [
                "Account default",
                "Claim p-e",
                "Claim v1",
                "ConfigMap c1",
                "ConfigMap c2",
                "ConfigMap c3",
                "Secret s1",
                "Secret s2",
                "Secret s3",
            ]
        );
        put(&mut graph, None);
        assert!(graph.nodes.is_empty() && graph.pods.is_empty());
    }
}
