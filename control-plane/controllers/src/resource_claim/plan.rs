//! From pods and claims to what must be written. Pure.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{POD_CLAIM, PROTECTED};
use crate::view::{Meta, Pod, ResourceClaim};

/// What to do for a pod.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Make a claim for this entry of the pod, from this template.
    Make { entry: String, template: String },
    /// The pod's status is to name these claims.
    Tell(Vec<(String, String)>),
}

/// What a pod lacks. `own` are the claims that were made for it.
pub fn of_pod(pod: &Pod, own: &[Arc<ResourceClaim>]) -> Vec<Step> {
    let mut steps = Vec::new();
    if pod.is_finished() || pod.is_terminating() {
        return steps;
    }
    let mut known: Vec<(String, String)> = Vec::new();
    for entry in &pod.spec.resource_claims {
        let Some(template) = &entry.resource_claim_template_name else { continue };
        let made = own.iter().filter(|claim| claim.annotation(POD_CLAIM) == Some(&entry.name));
        // Two of them: the watch lagged. The first by name counts, the other goes with its pod.
        match made.filter(|claim| !claim.is_terminating()).map(|claim| claim.name()).min() {
            Some(name) => known.push((entry.name.clone(), name.to_owned())),
            None => steps.push(Step::Make { entry: entry.name.clone(), template: template.clone() }),
        }
    }
    let said: Vec<(String, String)> = pod
        .status
        .resource_claim_statuses
        .iter()
        .filter_map(|one| Some((one.name.clone(), one.resource_claim_name.clone()?)))
        .collect();
    if !known.iter().all(|one| said.contains(one)) {
        steps.push(Step::Tell(known));
    }
    steps
}

/// The claim that is made for an entry of a pod. `template` is the spec of the template.
pub fn body(pod: &Pod, entry: &str, template: &Value) -> Value {
    let mut metadata = json!({
        "generateName": format!("{}-{entry}-", pod.name()),
        "annotations": template.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({})),
        "ownerReferences": [{
            "apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid(),
            "controller": true, "blockOwnerDeletion": true,
        }],
    });
    metadata["annotations"][POD_CLAIM] = entry.into();
    if let Some(labels) = template.pointer("/metadata/labels") {
        metadata["labels"] = labels.clone();
    }
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": metadata,
        "spec": template.pointer("/spec").cloned().unwrap_or_default(),
    })
}

/// What becomes of a claim.
#[derive(Debug, Default, PartialEq)]
pub struct Upkeep {
    /// Users that stay, where that differs from those that it has.
    pub users: Option<Vec<Value>>,
    /// Its devices are given back.
    pub release: bool,
    /// Nothing holds it from being deleted.
    pub unprotect: bool,
    /// It was made for a pod that is done.
    pub delete: bool,
}

/// What is known of a pod that uses a claim.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum User {
    /// It may still use the devices.
    Needs,
    /// It is gone, done, or was never given a node and is being deleted.
    Done,
}

/// What to do with a claim. `user` says of each user by its uid what is known; `owner` is the pod that it was made for.
pub fn upkeep(claim: &ResourceClaim, user: impl Fn(&str) -> User, owner: Option<User>) -> Upkeep {
    let users: Vec<_> = claim.status.reserved_for.iter().flatten().collect();
    let stay: Vec<_> =
        users.iter().filter(|one| one.resource != "pods" || user(&one.uid) == User::Needs).collect();
    let allocated = claim.status.allocation.is_some();
    let protected = claim.metadata.finalizers.iter().flatten().any(|f| f == PROTECTED);
    // Devices of a claim that nobody uses any more are free for others; one that nobody used yet keeps them for whom the
    // scheduler is about to reserve it.
    let release = allocated && stay.is_empty() && (!users.is_empty() || claim.is_terminating());
    Upkeep {
        users: (stay.len() != users.len() || (release && !users.is_empty()))
            .then(|| stay.iter().map(|one| json!(one)).collect()),
        release,
        unprotect: protected && stay.is_empty() && (release || !allocated),
        delete: owner == Some(User::Done) && !claim.is_terminating(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(meta: Value, status: Value) -> ResourceClaim {
        let mut all = json!({ "name": "c", "finalizers": [PROTECTED] });
        json_patch::merge(&mut all, &meta);
        serde_json::from_value(json!({ "metadata": all, "status": status })).unwrap()
    }

    #[test]
    fn claims_are_made_once_and_told() {
        let pod = |status: Value| -> Pod {
            serde_json::from_value(json!({
                "metadata": { "name": "p", "uid": "u" }, "status": status,
                "spec": { "resourceClaims": [
                    { "name": "gpu", "resourceClaimTemplateName": "t" }, { "name": "shared", "resourceClaimName": "s" },
                ] },
            }))
            .unwrap()
        };
        let make = Step::Make { entry: "gpu".into(), template: "t".into() };
        assert_eq!(of_pod(&pod(json!({})), &[]), [make]);
        let own =
            [Arc::new(claim(json!({ "name": "p-gpu-x", "annotations": { POD_CLAIM: "gpu" } }), json!({})))];
        let tell = Step::Tell(vec![("gpu".into(), "p-gpu-x".into())]);
        assert_eq!(of_pod(&pod(json!({})), &own), [tell]);
        let told = json!({ "resourceClaimStatuses": [{ "name": "gpu", "resourceClaimName": "p-gpu-x" }] });
        assert_eq!(of_pod(&pod(told), &own), []);
        assert_eq!(of_pod(&pod(json!({ "phase": "Failed" })), &[]), []);
        let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "devices": {} } });
        let made = body(&pod(json!({})), "gpu", &template);
        assert_eq!(made["metadata"]["generateName"], "p-gpu-");
        assert_eq!(made["metadata"]["labels"]["a"], "b");
        assert_eq!(made["metadata"]["annotations"][POD_CLAIM], "gpu");
        assert_eq!(made["spec"], json!({ "devices": {} }));
    }

    #[test]
    fn devices_go_back_when_the_last_user_is_done() {
        let user = |uid: &str| json!({ "resource": "pods", "name": uid, "uid": uid });
        let status = |users: &[&str]| {
            let users: Vec<Value> = users.iter().map(|u| user(u)).collect();
            json!({ "allocation": {}, "reservedFor": users })
        };
        let needs = |uid: &str| if uid == "a" { User::Needs } else { User::Done };
        let both = upkeep(&claim(json!({}), status(&["a", "b"])), needs, None);
        assert_eq!(both, Upkeep { users: Some(vec![user("a")]), ..Upkeep::default() });
        assert_eq!(upkeep(&claim(json!({}), status(&["a"])), needs, None), Upkeep::default());
        let last = upkeep(&claim(json!({}), status(&["b"])), needs, None);
        assert_eq!(last, Upkeep { users: Some(vec![]), release: true, unprotect: true, delete: false });
        // About to be reserved; unless somebody deletes it.
        assert_eq!(upkeep(&claim(json!({}), status(&[])), needs, None), Upkeep::default());
        let leaving = claim(json!({ "deletionTimestamp": "2026-01-01T00:00:00Z" }), status(&[]));
        assert_eq!(
            upkeep(&leaving, needs, None),
            Upkeep { release: true, unprotect: true, ..Upkeep::default() }
        );
        // Made for a pod that is done.
        assert!(upkeep(&claim(json!({}), status(&["b"])), needs, Some(User::Done)).delete);
        // A finalizer without devices holds nothing.
        assert_eq!(
            upkeep(&claim(json!({}), json!({})), needs, None),
            Upkeep { unprotect: true, ..Upkeep::default() }
        );
    }
}
