//! What is known of a call: who, which verb, which object. Filters fill it; everything after them reads it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name, such as `system:admin`.
    pub name: String,
    /// Unique id; often empty.
    pub uid: String,
    /// Groups, such as `system:masters`.
    pub groups: Vec<String>,
    /// Anything else that the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with groups; `system:authenticated` is added.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| g.to_string()).collect();
        if !groups.iter().any(|g| g == "system:authenticated") {
            groups.push("system:authenticated".into());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The caller without credentials.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// Whether the user is in a group.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// How unknown and duplicate fields in a body are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped with a `Warning` header.
    #[default]
    Warn,
    /// Refused with 400.
    Strict,
}

/// What a call's plugins tell its client in `Warning` headers. Clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Most warnings of one call.
    const MAX: usize = 64;

    /// Adds one, unless it is there or there are too many.
    pub fn add(&self, warning: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < Self::MAX && !all.contains(&warning) {
            all.push(warning);
        }
    }

    /// Takes all.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What plugins have to say of a call in the audit log: annotations by key, such as
/// `pod-security.kubernetes.io/enforce-policy`. Clones share one map; without an audit log nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct Annotations(Option<Arc<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    annotations: Mutex<BTreeMap<String, String>>,
    body: OnceLock<Bytes>,
}

impl Annotations {
    /// Most annotations of one call.
    const MAX: usize = 64;

    /// Annotations that are kept.
    pub(crate) fn kept() -> Self {
        Self(Some(Arc::default()))
    }

    /// Whether anybody reads them, so that it is worth making them.
    pub fn are_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Adds one. The first under a key stays, as in Kubernetes.
    pub fn add(&self, key: impl Into<String>, value: impl Into<String>) {
        let Some(notes) = &self.0 else { return };
        let mut all = notes.annotations.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < Self::MAX {
            all.entry(key.into()).or_insert_with(|| value.into());
        }
    }

    /// All of them.
    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        let Some(notes) = &self.0 else { return BTreeMap::new() };
        notes.annotations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the body of the call.
    pub(crate) fn keep_body(&self, body: &Bytes) {
        if let Some(notes) = &self.0 {
            let _ = notes.body.set(body.clone());
        }
    }

    /// The body of the call.
    pub(crate) fn body(&self) -> Option<Bytes> {
        self.0.as_ref()?.body.get().filter(|body| !body.is_empty()).cloned()
    }
}

/// One call.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Verb in the words of authorization: get, list, watch, create, update, patch, delete, deletecollection.
    pub verb: &'static str,
    /// Who calls.
    pub user: UserInfo,
    /// API group; empty is the core group.
    pub group: String,
    /// Version in the path.
    pub version: String,
    /// Plural of the resource; empty for paths that are no resource.
    pub resource: String,
    /// Kind of the resource.
    pub kind: String,
    /// Namespace in the path.
    pub namespace: Option<String>,
    /// Name in the path; for create, the name in the body once known.
    pub name: Option<String>,
    /// Subresource in the path.
    pub subresource: Option<String>,
    /// The path as it was sent.
    pub path: String,
    /// Nothing may be written.
    pub dry_run: bool,
    /// How unknown fields are treated.
    pub field_validation: FieldValidation,
    /// Name of the field manager, or the user agent's first word.
    pub field_manager: String,
    /// When the call came in.
    pub now: Timestamp,
    /// What the client is told beside the answer.
    pub warnings: Warnings,
    /// What the audit log is told of it.
    pub annotations: Annotations,
}
