//! From an object and its owners to what must be done with it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use super::graph::{Graph, Object};
use super::{FOREGROUND, ORPHAN};

/// What to do with an object. Every action is bound to the uid and version that was judged.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Delete it, with this propagation.
    Delete { path: String, uid: String, resource_version: String, propagation: &'static str },
    /// Change its metadata by a merge patch.
    Patch { path: String, body: Value },
}

/// What an owner is to its dependent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It is there.
    Solid,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// It is not there.
    Absent,
}

/// Owners of an object that the graph does not know: only the API server can say whether they are there.
pub fn unknown_owners<'a>(graph: &'a Graph, object: &'a Object) -> impl Iterator<Item = &'a OwnerReference> {
    object.owners.iter().filter(|o| graph.get(&o.uid).is_none())
}

/// What to do with an object that does not orphan its dependents (see [`let_go`]). `is_absent` says of an unknown owner whether
/// it is known to be gone.
pub fn plan(graph: &Graph, object: &Object, is_absent: impl Fn(&str) -> bool) -> Vec<Action> {
    if object.waits_for_dependents() {
        let blocks = |d: &Object| {
            d.uid != object.uid
                && d.owners.iter().any(|o| o.uid == object.uid && o.block_owner_deletion == Some(true))
        };
        let blocked = graph.dependents(&object.uid).any(blocks);
        return if blocked { Vec::new() } else { vec![without_finalizer(object, FOREGROUND)] };
    }
    if object.deleting || object.owners.is_empty() {
        return Vec::new();
    }
    let kind = |o: &OwnerReference| match graph.get(&o.uid) {
        Some(owner) if owner.waits_for_dependents() => Owner::Waiting,
        Some(_) => Owner::Solid,
        None if is_absent(&o.uid) => Owner::Absent,
        None => Owner::Solid,
    };
    let kinds: Vec<Owner> = object.owners.iter().map(kind).collect();
    if kinds.iter().all(|k| *k == Owner::Solid) {
        return Vec::new();
    }
    if kinds.contains(&Owner::Solid) {
        let rest: Vec<&OwnerReference> =
            object.owners.iter().zip(&kinds).filter(|(_, k)| **k == Owner::Solid).map(|(o, _)| o).collect();
        return vec![patch(object, json!({ "ownerReferences": rest }))];
    }
    // A circle: who waits for this one is waited for by it. This one gives way, or neither would ever go.
    let circle = graph.dependents(&object.uid).any(Object::waits_for_dependents);
    if circle && object.owners.iter().any(|o| o.block_owner_deletion == Some(true)) {
        let free =
            object.owners.iter().map(|o| OwnerReference { block_owner_deletion: Some(false), ..o.clone() });
        return vec![patch(object, json!({ "ownerReferences": free.collect::<Vec<_>>() }))];
    }
    let has_dependents = graph.dependents(&object.uid).next().is_some();
    let propagation = if object.has_finalizer(ORPHAN) {
        "Orphan"
    } else if object.has_finalizer(FOREGROUND) || (kinds.contains(&Owner::Waiting) && has_dependents) {
        "Foreground"
    } else {
        "Background"
    };
    vec![Action::Delete {
        path: object.path(),
        uid: object.uid.clone(),
        resource_version: object.resource_version.clone(),
        propagation,
    }]
}

/// First every dependent forgets the owner, then the owner may go. Whichever is forgotten here goes with its owner: these
/// have to be all of them.
pub fn let_go<'a>(dependents: impl Iterator<Item = &'a Object>, owner: &Object) -> Vec<Action> {
    let mut actions: Vec<Action> = dependents
        .map(|d| {
            let rest: Vec<&OwnerReference> = d.owners.iter().filter(|o| o.uid != owner.uid).collect();
            patch(d, json!({ "ownerReferences": rest }))
        })
        .collect();
    actions.push(without_finalizer(owner, ORPHAN));
    actions
}

fn without_finalizer(object: &Object, finalizer: &str) -> Action {
    let rest: Vec<&String> = object.finalizers.iter().filter(|f| *f != finalizer).collect();
    patch(object, json!({ "finalizers": rest }))
}

fn patch(object: &Object, mut metadata: Value) -> Action {
    metadata["uid"] = object.uid.as_str().into();
    metadata["resourceVersion"] = object.resource_version.as_str().into();
    Action::Patch { path: object.path(), body: json!({ "metadata": metadata }) }
}
