//! Persistent volumes of a pod: what its claims are bound to, and where that lies on this node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{NFSVolumeSource, PersistentVolumeSpec, Pod, Volume};

/// A claim's volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claimed {
    /// The PersistentVolume's name.
    pub name: String,
    /// What it is.
    pub spec: PersistentVolumeSpec,
    /// The pod asks to read only.
    pub read_only: bool,
}

/// By the name of the pod's volume.
pub type Claims = BTreeMap<String, Claimed>;

/// The claim that a volume of a pod means, and whether it is to be read only. A generic ephemeral volume has a claim of its
/// own, named after pod and volume.
pub fn claim(pod: &Pod, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), source.read_only.unwrap_or(false)));
    }
    volume.ephemeral.as_ref()?;
    Some((format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name), false))
}

/// Where persistent data of this node lies: `<root>/storage`.
pub fn storage(root: &Path) -> PathBuf {
    root.join("storage")
}

impl Claimed {
    /// The kinds of volume that this node has.
    ///
    /// # Errors
    /// The name of another kind.
    pub fn supported(&self) -> Result<(), String> {
        let device = self.spec.local.is_some() || self.spec.csi.is_some();
        if self.is_block() && !device {
            return Err("volumeMode Block, but of local and CSI volumes,".to_owned());
        }
        let known = self.spec.local.is_some() || self.spec.host_path.is_some() || self.spec.nfs.is_some();
        if known || self.spec.csi.is_some() {
            return Ok(());
        }
        let fields = serde_json::to_value(&self.spec).unwrap_or_default();
        let common = [
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "nodeAffinity",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeAttributesClassName",
            "volumeMode",
        ];
        let fields = fields.as_object();
        let kind =
            fields.into_iter().flatten().map(|(key, _)| key).find(|key| !common.contains(&key.as_str()));
        Err(kind.cloned().unwrap_or_else(|| "unknown".to_owned()))
    }

    /// Whether it is a device, and not a filesystem.
    pub fn is_block(&self) -> bool {
        self.spec.volume_mode.as_deref() == Some("Block")
    }

    /// A directory of this node that the volume is, without any mount; of a device its node.
    pub fn directory(&self) -> Option<&str> {
        let local = self.spec.local.as_ref().map(|l| l.path.as_str());
        local.or_else(|| self.spec.host_path.as_ref().map(|h| h.path.as_str()))
    }

    /// The NFS share that the volume is.
    pub fn nfs(&self) -> Option<NFSVolumeSource> {
        let mut share = self.spec.nfs.clone()?;
        share.read_only = Some(self.read_only || share.read_only == Some(true));
        Some(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn kinds() {
        let claimed = |spec| Claimed {
            name: "pv".into(),
            spec: serde_json::from_value(spec).expect("a spec"),
            read_only: false,
        };
        assert_eq!(claimed(json!({"local": {"path": "/a"}})).supported(), Ok(()));
        let csi = json!({"csi": {"driver": "d", "volumeHandle": "h"}, "accessModes": ["ReadWriteOnce"], "capacity": {}});
        assert_eq!(claimed(csi).supported(), Ok(()));
        let other =
            json!({"rbd": {"image": "i", "monitors": []}, "accessModes": ["ReadWriteOnce"], "capacity": {}});
        assert_eq!(claimed(other).supported(), Err("rbd".to_owned()));
        let block = claimed(json!({"local": {"path": "/dev/x"}, "volumeMode": "Block"}));
        assert!(block.is_block() && block.supported().is_ok());
        let block = json!({"hostPath": {"path": "/dev/x"}, "volumeMode": "Block"});
        assert!(claimed(block).supported().is_err_and(|kind| kind.contains("volumeMode Block")));
    }
}
