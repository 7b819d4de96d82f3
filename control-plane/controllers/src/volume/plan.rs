//! Which volume a claim gets, and what becomes of a volume. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::labels::Selector;
use coracle_api::quantity::Quantity;

use crate::view::{Meta, PersistentVolume, PersistentVolumeClaim, StorageClass};

/// Annotation of a claim and volume that are bound to each other for good.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of a binding that a controller made, not a user.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotation of a volume that was made for a claim.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotation of a claim whose first pod has its node.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner of directories on nodes.
pub const LOCAL: &str = "coracle.dev/local";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Whether a volume is what a claim asks for, wherever it can be reached.
pub fn fits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let size = |from: Option<&String>| from.and_then(|text| Quantity::parse(text).ok()).map(|q| q.value());
    let wanted = size(claim.spec.resources.requests.as_ref().and_then(|all| all.get("storage")));
    let mode = |of: &Option<String>| of.clone().unwrap_or_else(|| "Filesystem".to_string());
    let class = |of: &Option<String>| of.clone().unwrap_or_default();
    let selected = claim.spec.selector.as_ref().is_none_or(|selector| {
        Selector::from_label_selector(selector).is_ok_and(|s| s.matches(|key| volume.label(key)))
    });
    !volume.is_terminating()
        && class(&volume.spec.storage_class_name) == class(&claim.spec.storage_class_name)
        && mode(&volume.spec.volume_mode) == mode(&claim.spec.volume_mode)
        && claim.spec.access_modes.iter().all(|mode| volume.spec.access_modes.contains(mode))
        && size(volume.spec.capacity.get("storage")).unwrap_or(0) >= wanted.unwrap_or(0)
        && selected
}

/// Whether a volume is kept for a claim.
pub fn kept_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    volume.spec.claim_ref.as_ref().is_some_and(|reference| {
        reference.name.as_deref() == Some(claim.name())
            && reference.namespace.as_deref() == Some(claim.namespace())
            && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || uid == claim.uid())
    })
}

/// What a claim needs next.
#[derive(Clone, Debug)]
pub enum ClaimStep {
    /// It gets this volume, chosen here or by the user.
    Bind { volume: Arc<PersistentVolume>, chosen: bool },
    /// Its volume is gone or another's, for good.
    Lost(&'static str, String),
    /// It waits; the reason and words of an Event.
    Wait(&'static str, String),
    /// A volume is to be made: on this node, or on any.
    Provision { node: Option<String> },
    /// Somebody else makes its volume.
    External(String),
    /// It waits in silence.
    Pending,
}

/// What a claim needs, given all volumes and its class.
pub fn claim_step(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    class: Option<&StorageClass>,
) -> ClaimStep {
    let completed = claim.annotation(BIND_COMPLETED).is_some();
    if let Some(name) = claim.volume() {
        let volume = volumes.iter().find(|v| v.name() == name);
        return match volume {
            Some(volume) if volume.spec.claim_ref.is_none() || kept_for(volume, claim) => {
                ClaimStep::Bind { volume: volume.clone(), chosen: false }
            }
            Some(_) if completed => {
                let words =
                    format!("Two claims are bound to the same volume, this one is bound incorrectly: {name}");
                ClaimStep::Lost("ClaimMisbound", words)
            }
            None if completed => {
                let words = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
                ClaimStep::Lost("ClaimLost", words.to_string())
            }
            Some(_) => ClaimStep::Wait(
                "FailedBinding",
                format!("volume \"{name}\" already bound to a different claim."),
            ),
            None => ClaimStep::Pending,
        };
    }
    if completed {
        let words = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
        return ClaimStep::Lost("ClaimLost", words.to_string());
    }
    if let Some(volume) = volumes.iter().find(|v| kept_for(v, claim)) {
        return ClaimStep::Bind { volume: volume.clone(), chosen: true };
    }
    let node = claim.annotation(SELECTED_NODE).filter(|n| !n.is_empty());
    let late = class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    if late && node.is_none() {
        let words = "waiting for first consumer to be created before binding";
        return ClaimStep::Wait("WaitForFirstConsumer", words.to_string());
    }
    let free = volumes.iter().filter(|v| v.spec.claim_ref.is_none() && fits(v, claim));
    if let Some(volume) = free.min_by_key(|v| (capacity(v), v.name().to_string())).filter(|_| !late) {
        return ClaimStep::Bind { volume: volume.clone(), chosen: true };
    }
    match class.map(|c| c.provisioner.as_str()) {
        Some(LOCAL) => ClaimStep::Provision { node: node.map(String::from) },
        Some(NO_PROVISIONER) | None
            if claim.spec.storage_class_name.as_deref().is_some_and(|c| !c.is_empty()) =>
        {
            let name = claim.spec.storage_class_name.as_deref().unwrap_or_default();
            let words = match class {
                Some(_) => "no volume plugin matched name: kubernetes.io/no-provisioner".to_string(),
                None => format!("storageclass.storage.k8s.io \"{name}\" not found"),
            };
            ClaimStep::Wait("ProvisioningFailed", words)
        }
        Some(other) if other != NO_PROVISIONER => ClaimStep::External(other.to_string()),
        _ => {
            let words = "no persistent volumes available for this claim and no storage class is set";
            ClaimStep::Wait("FailedBinding", words.to_string())
        }
    }
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let text = volume.spec.capacity.get("storage");
    text.and_then(|text| Quantity::parse(text).ok()).map_or(i64::MAX, |quantity| quantity.value())
}

/// What becomes of a volume.
#[derive(Debug, PartialEq)]
pub enum VolumeStep {
    /// Its phase is this.
    Phase(&'static str),
    /// Its claim is gone: it is deleted, and its data by its node.
    Delete,
    /// Its claim is gone and nobody knows how to delete it: the words.
    Failed(String),
}

/// What becomes of a volume, given the claim that its reference names.
pub fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let Some(reference) = &volume.spec.claim_ref else { return VolumeStep::Phase("Available") };
    let uid = reference.uid.as_deref().unwrap_or_default();
    if uid.is_empty() {
        return VolumeStep::Phase("Available");
    }
    if let Some(claim) = claim.filter(|c| c.uid() == uid) {
        let bound = claim.volume() == Some(volume.name());
        return VolumeStep::Phase(if bound {
            "Bound"
        } else {
            volume.status.phase.as_deref().map_or("Available", known)
        });
    }
    match volume.spec.persistent_volume_reclaim_policy.as_deref() {
        Some("Delete") if volume.annotation(PROVISIONED_BY) == Some(LOCAL) => VolumeStep::Delete,
        Some("Delete") if volume.annotation(PROVISIONED_BY).is_some() => VolumeStep::Phase("Released"),
        Some("Delete") => VolumeStep::Failed(
            "error getting deleter volume plugin for volume: no deletable volume plugin matched".into(),
        ),
        Some("Recycle") => VolumeStep::Failed("No recycler plugin found for the volume!".into()),
        _ => VolumeStep::Phase("Released"),
    }
}

fn known(phase: &str) -> &'static str {
    ["Bound", "Released", "Failed", "Pending"].into_iter().find(|p| *p == phase).unwrap_or("Available")
}

/// What a claim's status says of a bound volume.
pub fn granted(volume: &PersistentVolume) -> (Vec<String>, BTreeMap<String, String>) {
    (volume.spec.access_modes.clone(), volume.spec.capacity.clone())
}
