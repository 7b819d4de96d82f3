//! Volumes on demand: directories on nodes (`coracle.dev/local`).
//!
//! A node says in an annotation where persistent data may lie. The volume is a `local` one with that node's name; the node's
//! agent makes the directory when it is first mounted, and deletes it when the volume goes, before it removes
//! [`DATA_FINALIZER`].

use serde_json::{Value, json};

use super::plan::{BOUND_BY_CONTROLLER, LOCAL, PROVISIONED_BY};
use crate::view::{Meta, Node, PersistentVolumeClaim, StorageClass};

/// Annotation of a node: the directory of its persistent volumes.
pub const VOLUMES_DIR: &str = "coracle.dev/volumes-dir";
/// Finalizer of a volume whose data lies on a node.
pub const DATA_FINALIZER: &str = "coracle.dev/local-data";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The name of the volume that is made for a claim.
pub fn name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid())
}

/// The volume for a claim on a node.
///
/// # Errors
/// Why the node cannot have it.
pub fn volume(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> Result<Value, String> {
    let Some(dir) = node.annotation(VOLUMES_DIR).filter(|dir| dir.starts_with('/')) else {
        return Err(format!(
            "node {} does not say where persistent volumes lie ({VOLUMES_DIR})",
            node.name()
        ));
    };
    if claim.spec.volume_mode.as_deref() == Some("Block") {
        return Err("local directories cannot be block devices".into());
    }
    let name = name(claim);
    let size = claim.spec.resources.requests.as_ref().and_then(|all| all.get("storage"));
    let host = node.label(HOSTNAME).unwrap_or(node.name());
    Ok(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": { PROVISIONED_BY: LOCAL, BOUND_BY_CONTROLLER: "yes" },
            "finalizers": [DATA_FINALIZER],
        },
        "spec": {
            "capacity": { "storage": size },
            "accessModes": claim.spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name(),
            "volumeMode": "Filesystem",
            "local": { "path": format!("{}/{name}", dir.trim_end_matches('/')) },
            "claimRef": super::binder::reference(claim),
            "nodeAffinity": { "required": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": HOSTNAME, "operator": "In", "values": [host] }] },
            ] } },
        },
    }))
}
