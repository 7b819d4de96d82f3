//! Local volumes (`local` of a PersistentVolume): directories of this node that pods have as they are.

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::claims::Claimed;
use super::{PodDir, is_component, own};

/// Gives a volume to the pod's `fsGroup` when the first pod of this node mounts it. A directory beside the pod's other
/// volumes, where the kubelet mounts it, says that the pod has it.
///
/// # Errors
/// What could not be given.
pub fn give(pod: &Pod, dir: &PodDir, claimed: &Claimed) -> Result<(), String> {
    let path = claimed.spec.local.as_ref().map(|local| local.path.as_str());
    let Some(path) = path.filter(|_| !claimed.read_only && is_component(&claimed.name)) else {
        return Ok(());
    };
    let mark = |pod_dir: &Path| pod_dir.join("volumes/kubernetes.io~local-volume").join(&claimed.name);
    let own_mark = mark(&dir.path);
    if own_mark.exists() {
        return Ok(());
    }
    let mut pods = std::fs::read_dir(dir.root.join("pods")).into_iter().flatten().flatten();
    if !pods.any(|other| mark(&other.path()).exists()) {
        own(pod, Path::new(path))?;
    }
    std::fs::create_dir_all(&own_mark).map_err(|e| format!("create {}: {e}", own_mark.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_first_pod_of_a_local_volume_gives_it_to_its_group() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("data");
        std::fs::create_dir(&path).expect("a directory");
        let claimed = Claimed {
            name: "pv".into(),
            spec: serde_json::from_value(json!({"local": {"path": path}})).expect("a spec"),
            read_only: false,
        };
        let before = std::fs::metadata(&path).expect("it").gid();
        let is_root = nix::unistd::geteuid().is_root();
        for (uid, group, expected) in [("a", 4242, 4242), ("a", 4243, 4242), ("b", 4244, 4242)] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": uid},
                "spec": {"containers": [], "securityContext": {"fsGroup": group}}}))
            .expect("a Pod");
            let dir = PodDir::new(root.path(), uid).expect("a pod directory");
            give(&pod, &dir, &claimed).expect("given");
            // Only root can give.
            let expected = if is_root { expected } else { before };
            assert_eq!(std::fs::metadata(&path).expect("it").gid(), expected, "{uid} {group}");
        }
    }
}
