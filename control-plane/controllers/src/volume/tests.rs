//! Which volume a claim gets.

use std::sync::Arc;

use serde_json::{Value, json};

use super::plan::{ClaimStep, VolumeStep, claim_step, volume_step};
use super::provision;
use crate::view::{Meta, PersistentVolume, PersistentVolumeClaim, StorageClass};

fn claim(change: Value) -> PersistentVolumeClaim {
    let mut claim = json!({
        "metadata": { "name": "data", "namespace": "default", "uid": "c1" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } }, "storageClassName": "local" },
    });
    json_patch::merge(&mut claim, &change);
    serde_json::from_value(claim).unwrap()
}

fn volume(name: &str, size: &str, change: Value) -> Arc<PersistentVolume> {
    let mut volume = json!({
        "metadata": { "name": name, "uid": name },
        "spec": { "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"], "storageClassName": "local" },
    });
    json_patch::merge(&mut volume, &change);
    Arc::new(serde_json::from_value(volume).unwrap())
}

fn class(mode: &str, provisioner: &str) -> StorageClass {
    let class =
        json!({ "metadata": { "name": "local" }, "provisioner": provisioner, "volumeBindingMode": mode });
    serde_json::from_value(class).unwrap()
}

fn bound(step: ClaimStep) -> Option<String> {
    match step {
        ClaimStep::Bind { volume, .. } => Some(volume.name().to_string()),
        _ => None,
    }
}

#[test]
fn the_smallest_that_fits_is_taken() {
    let taken = json!({ "spec": { "claimRef": { "name": "other", "namespace": "default", "uid": "x" } } });
    let volumes = [
        volume("big", "10Gi", json!({})),
        volume("small", "512Mi", json!({})),
        volume("fit", "2Gi", json!({})),
        volume("taken", "1Gi", taken),
        volume("other", "1Gi", json!({ "spec": { "storageClassName": "fast" } })),
    ];
    assert_eq!(bound(claim_step(&claim(json!({})), &volumes, None)).as_deref(), Some("fit"));
    let many = claim(json!({ "spec": { "accessModes": ["ReadWriteMany"] } }));
    assert_eq!(bound(claim_step(&many, &volumes, None)), None);
    let kept = json!({ "spec": { "claimRef": { "name": "data", "namespace": "default" } } });
    let volumes = [volume("fit", "2Gi", json!({})), volume("kept", "5Gi", kept)];
    assert_eq!(bound(claim_step(&claim(json!({})), &volumes, None)).as_deref(), Some("kept"));
}

#[test]
fn who_waits_for_a_consumer_is_not_bound_before() {
    let late = class("WaitForFirstConsumer", "coracle.dev/local");
    let volumes = [volume("fit", "2Gi", json!({}))];
    assert!(matches!(
        claim_step(&claim(json!({})), &volumes, Some(&late)),
        ClaimStep::Wait("WaitForFirstConsumer", _)
    ));
    let selected =
        claim(json!({ "metadata": { "annotations": { "volume.kubernetes.io/selected-node": "n1" } } }));
    let step = claim_step(&selected, &[], Some(&late));
    assert!(matches!(step, ClaimStep::Provision { node: Some(node) } if node == "n1"));
    assert!(matches!(
        claim_step(&claim(json!({})), &[], Some(&class("Immediate", "csi.example"))),
        ClaimStep::External(_)
    ));
    assert!(matches!(claim_step(&claim(json!({})), &[], None), ClaimStep::Wait("ProvisioningFailed", _)));
}

#[test]
fn a_bound_claim_without_its_volume_is_lost() {
    let completed = json!({ "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } }, "spec": { "volumeName": "gone" } });
    assert!(matches!(claim_step(&claim(completed), &[], None), ClaimStep::Lost("ClaimLost", _)));
}

#[test]
fn a_released_volume_goes_by_its_policy() {
    let reference = json!({ "name": "data", "namespace": "default", "uid": "c1" });
    let with = |policy: &str, by: Value| {
        let change = json!({ "metadata": { "annotations": by }, "spec": { "claimRef": reference, "persistentVolumeReclaimPolicy": policy } });
        volume_step(&volume("v", "1Gi", change), None)
    };
    let local = json!({ "pv.kubernetes.io/provisioned-by": "coracle.dev/local" });
    assert_eq!(with("Delete", local.clone()), VolumeStep::Delete);
    assert_eq!(with("Retain", local), VolumeStep::Phase("Released"));
    assert!(matches!(with("Delete", json!({})), VolumeStep::Failed(_)));
    let change = json!({ "spec": { "claimRef": reference } });
    let there = claim(json!({ "spec": { "volumeName": "v" } }));
    assert_eq!(volume_step(&volume("v", "1Gi", change), Some(&there)), VolumeStep::Phase("Bound"));
}

#[test]
fn a_local_volume_is_on_its_node() {
    let class = class("WaitForFirstConsumer", "coracle.dev/local");
    let node = json!({ "metadata": { "name": "n1", "labels": { "kubernetes.io/hostname": "n1" }, "annotations": { "coracle.dev/volumes-dir": "/data/" } } });
    let made = provision::volume(&claim(json!({})), &class, &serde_json::from_value(node).unwrap()).unwrap();
    assert_eq!(made["spec"]["local"]["path"], "/data/pvc-c1");
    assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
    let mute = serde_json::from_value(json!({ "metadata": { "name": "n2" } })).unwrap();
    assert!(provision::volume(&claim(json!({})), &class, &mute).is_err());
}
