//! Who a StatefulSet's pod is: its name, host name, labels and claims. Pure.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::history::REVISION_HASH;
use crate::pod_control::pod_of;
use crate::view::{Meta, Pod, StatefulSet};

/// Label with a pod's own name, for Services that want one pod.
pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with a pod's ordinal.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The name of a set's pod.
pub fn pod_name(set: &StatefulSet, ordinal: i64) -> String {
    format!("{}-{ordinal}", set.name())
}

/// The ordinal of a pod of a set; None when it is not the set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i64> {
    let (name, number) = pod.name().rsplit_once('-')?;
    let ordinal = number.parse().ok().filter(|n: &i64| *n >= 0)?;
    (name == set.name() && ordinal.to_string() == number).then_some(ordinal)
}

/// The claims of an ordinal: the volume's name, and the claim to be made.
pub fn claims(set: &StatefulSet, ordinal: i64) -> Vec<(String, Value)> {
    let claim = |template: &Value| {
        let volume = template.pointer("/metadata/name")?.as_str()?.to_string();
        let mut claim = template.clone();
        if let Some(map) = claim.as_object_mut() {
            map.remove("status");
        }
        claim["apiVersion"] = "v1".into();
        claim["kind"] = "PersistentVolumeClaim".into();
        claim["metadata"]["name"] = format!("{volume}-{}-{ordinal}", set.name()).into();
        claim["metadata"]["namespace"] = set.namespace().into();
        let labels = set.spec.selector.get("matchLabels").and_then(Value::as_object);
        for (key, value) in labels.into_iter().flatten() {
            claim["metadata"]["labels"][key] = value.clone();
        }
        if let Some(owners) = owners(set, &[], None) {
            claim["metadata"]["ownerReferences"] = json!(owners);
        }
        Some((volume, claim))
    };
    set.spec.volume_claim_templates.iter().filter_map(claim).collect()
}

/// The pod of an ordinal, made from `template` as of `revision`.
pub fn pod(set: &StatefulSet, template: &Value, revision: &str, ordinal: i64) -> Value {
    let name = pod_name(set, ordinal);
    let mut pod = pod_of(set, template, json!({ "name": name }));
    let labels =
        [(POD_NAME, name.clone()), (POD_INDEX, ordinal.to_string()), (REVISION_HASH, revision.into())];
    for (label, value) in labels {
        pod["metadata"]["labels"][label] = value.into();
    }
    let spec = &mut pod["spec"];
    spec["hostname"] = name.into();
    if !set.spec.service_name.is_empty() {
        spec["subdomain"] = set.spec.service_name.as_str().into();
    }
    let claims = claims(set, ordinal);
    if claims.is_empty() {
        return pod;
    }
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.retain(|v| !claims.iter().any(|(name, _)| v["name"] == name.as_str()));
    for (volume, claim) in claims {
        let claim = &claim["metadata"]["name"];
        volumes.push(json!({ "name": volume, "persistentVolumeClaim": { "claimName": claim } }));
    }
    spec["volumes"] = volumes.into();
    pod
}

/// The owners that a claim should have by the set's retention policy, if it has others: the set where claims go with it,
/// else the pod (`condemned`: name and uid) that is one too many, where claims go with that. Owners that others gave stay.
pub fn owners(
    set: &StatefulSet,
    there: &[OwnerReference],
    condemned: Option<(&str, &str)>,
) -> Option<Vec<OwnerReference>> {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |when: Option<&String>| when.is_some_and(|w| w == "Delete");
    let with_set = deletes(policy.and_then(|p| p.when_deleted.as_ref()));
    let with_pod = deletes(policy.and_then(|p| p.when_scaled.as_ref()));
    let owner = |version: &str, kind: &str, name: &str, uid: &str| OwnerReference {
        api_version: version.into(),
        kind: kind.into(),
        name: name.into(),
        uid: uid.into(),
        ..OwnerReference::default()
    };
    let is_ours = |o: &OwnerReference| o.uid == set.uid() || (o.kind == "Pod" && o.api_version == "v1");
    let mut wanted: Vec<OwnerReference> = there.iter().filter(|o| !is_ours(o)).cloned().collect();
    match condemned.filter(|_| with_pod) {
        Some((name, uid)) => wanted.push(owner("v1", "Pod", name, uid)),
        None if with_set => wanted.push(owner("apps/v1", "StatefulSet", set.name(), set.uid())),
        None => {}
    }
    let uids = |all: &[OwnerReference]| all.iter().map(|o| o.uid.clone()).collect::<BTreeSet<_>>();
    (uids(&wanted) != uids(there)).then_some(wanted)
}
