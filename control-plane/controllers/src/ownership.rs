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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{Pod, ReplicaSet};

    #[test]
    fn orphans_are_adopted_and_strangers_released() {
        let mut owner: ReplicaSet = serde_json::from_value(json!({ "metadata": { "uid": "rs" } })).unwrap();
        let selector = Selector::from_label_selector(&json!({ "matchLabels": { "app": "web" } })).unwrap();
        let pod = |app: &str, owner: Option<&str>| -> Pod {
            let owners = owner.map(|uid| json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid, "controller": true }]));
            serde_json::from_value(
                json!({ "metadata": { "labels": { "app": app }, "ownerReferences": owners } }),
            )
            .unwrap()
        };
        let cases = [
            (pod("web", Some("rs")), Claim::Keep),
            (pod("web", Some("other")), Claim::Ignore),
            (pod("debug", Some("rs")), Claim::Release),
            (pod("web", None), Claim::Adopt),
            (pod("debug", None), Claim::Ignore),
        ];
        for (pod, wanted) in &cases {
            assert_eq!(claim(&owner, &selector, pod), *wanted, "{pod:?}");
        }
        owner.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        for pod in [pod("web", None), pod("debug", Some("rs"))] {
            assert_eq!(claim(&owner, &selector, &pod), Claim::Ignore, "an owner that goes leaves them alone");
        }
    }
}
