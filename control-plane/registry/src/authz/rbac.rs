//! Role-based access control over an index that follows the store.

use coracle_apiserver::{AuthorizationRequest, UserInfo};
use coracle_store::{EventKind, Range, Store, Watch};
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use super::Verdict;
use super::index::Index;
use super::rules::Rule;

const PREFIX: &str = "/registry/rbac.authorization.k8s.io/";

/// Answers from roles and bindings. What was written through this server counts from the next call on.
pub struct Rbac {
    store: Store,
    index: RwLock<Index>,
    /// What has changed since the index was last looked at; `None` before the first look.
    watch: Mutex<Option<Watch>>,
}

impl Rbac {
    /// The roles and bindings in a store.
    pub fn new(store: Store) -> Self {
        Self { store, index: RwLock::default(), watch: Mutex::new(None) }
    }

    /// Brings the index up to date. Where nothing has changed, which is nearly always, this costs two locks.
    fn refresh(&self) {
        let mut watch = self.watch.lock();
        loop {
            let Some(events) = watch.as_mut() else {
                if let Err(error) = self.reload(&mut watch) {
                    // The old index goes on; the next call tries again.
                    tracing::error!(%error, "reading roles and bindings");
                    return;
                }
                continue;
            };
            match events.try_next() {
                Ok(None) => return,
                Ok(Some(event)) => {
                    let object = match event.kind {
                        EventKind::Put => serde_json::from_slice::<Value>(&event.kv.value.json).ok(),
                        EventKind::Delete => None,
                    };
                    if let Some(key) = key_of(&event.kv.key) {
                        self.index.write().put(key, object.as_ref());
                    }
                }
                // Fallen behind the window of changes: begin anew.
                Err(_) => *watch = None,
            }
        }
    }

    fn reload(&self, watch: &mut Option<Watch>) -> Result<(), coracle_store::Error> {
        let found = self.store.range(&Range::prefix(PREFIX))?;
        let mut index = Index::default();
        for kv in &found.kvs {
            let object = serde_json::from_slice::<Value>(&kv.value.json).ok();
            if let Some(key) = key_of(&kv.key) {
                index.put(key, object.as_ref());
            }
        }
        *watch = Some(self.store.watch(PREFIX.into(), found.revision)?);
        *self.index.write() = index;
        Ok(())
    }

    /// Whether some role allows a call.
    pub fn allows(&self, ask: &AuthorizationRequest<'_>) -> bool {
        self.refresh();
        let index = self.index.read();
        index.find(ask.user, ask.namespace, |_, rules| any_allows(rules, ask)).is_some()
    }

    /// Whether some role allows a call, and which; or what is wrong with the bindings of the caller.
    pub fn explain(&self, ask: &AuthorizationRequest<'_>) -> Verdict {
        self.refresh();
        let index = self.index.read();
        match index.find(ask.user, ask.namespace, |_, rules| any_allows(rules, ask)) {
            Some(grant) => Verdict { allowed: true, reason: grant.reason() },
            None => {
                drop(index);
                Verdict { allowed: false, reason: self.missing(ask).unwrap_or_default() }
            }
        }
    }

    /// Roles that the caller's bindings name and that do not exist: a reason for a refusal.
    pub fn missing(&self, ask: &AuthorizationRequest<'_>) -> Option<String> {
        let index = self.index.read();
        let mut words: Vec<String> = Vec::new();
        index.find(ask.user, ask.namespace, |grant, rules| {
            let all = words.len() >= 8;
            if rules.is_none() && !all {
                words.push(grant.no_role());
            }
            all
        });
        words.sort();
        words.dedup();
        match words.len() {
            0 => None,
            1 => Some(format!("RBAC: {}", words.concat())),
            _ => Some(format!("RBAC: [{}]", words.join(", "))),
        }
    }

    /// Every rule that holds for a user in a namespace (or the whole cluster).
    pub fn rules(&self, user: &UserInfo, namespace: Option<&str>) -> Vec<Rule> {
        self.refresh();
        let mut all: Vec<Rule> = Vec::new();
        self.index.read().find(user, namespace, |_, rules| {
            for rule in rules.unwrap_or_default() {
                if !all.contains(rule) {
                    all.push(rule.clone());
                }
            }
            false
        });
        all
    }

    /// The rules of a role; `None` if there is no such role. Without a namespace, of a ClusterRole.
    pub fn role(&self, namespace: Option<&str>, name: &str) -> Option<Vec<Rule>> {
        self.refresh();
        self.index.read().role(namespace.unwrap_or_default(), name).map(<[Rule]>::to_vec)
    }
}

fn any_allows(rules: Option<&[Rule]>, ask: &AuthorizationRequest<'_>) -> bool {
    rules.is_some_and(|rules| rules.iter().any(|rule| rule.allows(ask)))
}

/// What follows the prefix in a key.
fn key_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key).ok()?.strip_prefix(PREFIX)
}
