//! Who owns what: adoption of orphans that a selector matches and release of what it no longer matches.

use coracle_api::labels::Selector;
use kube::Resource;
use serde_json::{Value, json};

use crate::view::Meta;

/// What to do with an object, given an owner with a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is the owner's and stays so.
    Keep,
    /// Nobody owns it and the selector matches: make it the owner's.
    Adopt,
    /// The owner's, but the selector no longer matches: let it go.
    Release,
    /// Not for this owner.
    Ignore,
}

/// Whether the labels of an object match.
pub fn matches<K: Resource>(selector: &Selector, object: &K) -> bool {
    selector.matches(|key| object.label(key))
}

/// Kubernetes' rules for claiming: an owner that is being deleted adopts and releases nothing.
pub fn claim<O: Resource, K: Resource>(owner: &O, selector: &Selector, object: &K) -> Claim {
    match object.controller() {
        Some(reference) if reference.uid != owner.uid() => Claim::Ignore,
        Some(_) if matches(selector, object) => Claim::Keep,
        Some(_) if owner.is_terminating() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.is_terminating() || object.is_terminating() || !matches(selector, object) => {
            Claim::Ignore
        }
        None => Claim::Adopt,
    }
}

/// The owner reference of a controller.
pub fn controller_reference<O: Resource<DynamicType = ()>>(owner: &O) -> Value {
    json!({
        "apiVersion": O::api_version(&()), "kind": O::kind(&()), "name": owner.name(), "uid": owner.uid(),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// The strategic merge patch that makes `owner` the controller of an object.
pub fn adoption<O: Resource<DynamicType = ()>>(owner: &O, uid: &str) -> Value {
    json!({ "metadata": { "ownerReferences": [controller_reference(owner)], "uid": uid } })
}

/// The merge patch that removes `owner` from an object's owners.
pub fn release<O: Resource, K: Resource>(owner: &O, object: &K) -> Value {
    let references = object.meta().owner_references.iter().flatten().filter(|r| r.uid != owner.uid());
    let rest: Vec<_> = references.collect();
    json!({ "metadata": {
        "ownerReferences": rest, "uid": object.uid(), "resourceVersion": object.meta().resource_version,
    } })
}
