//! Volumes of pods: what goes into them (`sources`, pure) and how it gets there (`atomic`). Everything below a pod's
//! directory is written through cap-std, so that no key or path of an object can name anything outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Pod, Volume};

use crate::env::{Sources, fields::Facts};

pub mod atomic;
pub mod mounts;
pub mod sources;

/// Why a volume is not there: the words of a `FailedMount` Event.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What it is made from is missing or wrong.
    #[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
    SetUp {
        /// The volume's name.
        volume: String,
        /// Why.
        message: String,
    },
    /// This node has no such kind of volume: the pod can never run here.
    #[error("volume \"{volume}\": volumes of kind {kind} are not supported by this node")]
    Unsupported {
        /// The volume's name.
        volume: String,
        /// The field of the volume that says its kind.
        kind: String,
    },
}

/// Where volumes of one pod lie.
#[derive(Clone, Debug)]
pub struct PodDir {
    /// `<root>/pods/<uid>`.
    pub path: PathBuf,
}

/// Whether a name can be one component of a path.
fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

impl PodDir {
    /// The directory of a pod; `None` when the uid could name something else.
    pub fn new(root: &Path, uid: &str) -> Option<Self> {
        is_component(uid).then(|| Self { path: root.join("pods").join(uid) })
    }

    /// Where a volume of the pod lies on this node.
    pub fn volume(&self, volume: &Volume) -> Option<PathBuf> {
        if let Some(host_path) = &volume.host_path {
            return Some(PathBuf::from(&host_path.path));
        }
        let plugin = if volume.empty_dir.is_some() { "kubernetes.io~empty-dir" } else { plugin(volume)? };
        is_component(&volume.name).then(|| self.path.join("volumes").join(plugin).join(&volume.name))
    }

    /// Removes everything that the pod has here.
    pub fn remove(&self) -> std::io::Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The directory that the kubelet gives to a kind of volume that is written from objects.
fn plugin(volume: &Volume) -> Option<&'static str> {
    if volume.config_map.is_some() {
        Some("kubernetes.io~configmap")
    } else if volume.secret.is_some() {
        Some("kubernetes.io~secret")
    } else if volume.projected.is_some() {
        Some("kubernetes.io~projected")
    } else if volume.downward_api.is_some() {
        Some("kubernetes.io~downward-api")
    } else {
        None
    }
}

/// The field that says what kind of volume this is.
fn kind(volume: &Volume) -> String {
    let fields = serde_json::to_value(volume).ok();
    let object = fields.as_ref().and_then(|f| f.as_object());
    let named = object.into_iter().flatten().map(|(key, _)| key.as_str()).find(|key| *key != "name");
    // A volume that names no kind is an emptyDir only after defaulting, which the API server does.
    named.unwrap_or("unknown").to_owned()
}

/// The first volume that this node can never provide.
pub fn unsupported(pod: &Pod) -> Option<Error> {
    volumes(pod).iter().find_map(|volume| {
        let known = volume.empty_dir.is_some() || volume.host_path.is_some() || plugin(volume).is_some();
        (!known).then(|| Error::Unsupported { volume: volume.name.clone(), kind: kind(volume) })
    })
}

/// The volumes of a pod.
pub fn volumes(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

/// Makes every volume and brings those that come from objects up to date. Returns whether anything changed.
pub fn set_up(pod: &Pod, dir: &PodDir, sources: &Sources, facts: &Facts) -> Result<bool, Error> {
    if let Some(error) = unsupported(pod) {
        return Err(error);
    }
    let mut changed = false;
    for volume in volumes(pod) {
        let failed = |message: String| Error::SetUp { volume: volume.name.clone(), message };
        if let Some(host_path) = &volume.host_path {
            check_host_path(host_path).map_err(failed)?;
            continue;
        }
        let path =
            dir.volume(volume).ok_or_else(|| failed("the name of the volume is not a file name".into()))?;
        std::fs::create_dir_all(&path).map_err(|e| failed(format!("create {}: {e}", path.display())))?;
        if volume.empty_dir.is_some() {
            continue;
        }
        let files = sources::files(pod, volume, sources, facts).map_err(failed)?;
        let target = Dir::open_ambient_dir(&path, ambient_authority())
            .map_err(|e| failed(format!("open {}: {e}", path.display())))?;
        changed |= atomic::write(&target, &files).map_err(|e| failed(e.to_string()))?;
    }
    Ok(changed)
}

fn check_host_path(volume: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&volume.path);
    let kind = volume.type_.as_deref().unwrap_or_default();
    if !path.is_absolute() || path.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(format!("hostPath {} must be absolute and without ..", volume.path));
    }
    match kind {
        "DirectoryOrCreate" => {
            std::fs::create_dir_all(path).map_err(|e| format!("create {}: {e}", volume.path))
        }
        "FileOrCreate" => {
            let open = std::fs::OpenOptions::new().create(true).append(true).open(path);
            open.map(drop).map_err(|e| format!("create {}: {e}", volume.path))
        }
        "Directory" if !path.is_dir() => {
            Err(format!("hostPath type check failed: {} is not a directory", volume.path))
        }
        "File" if !path.is_file() => {
            Err(format!("hostPath type check failed: {} is not a file", volume.path))
        }
        "" | "Directory" | "File" => Ok(()),
        other => Err(format!("hostPath type {other} is not supported by this node")),
    }
}

/// Mounts of one container: container path, path on this node, read-only.
pub fn container_mounts(
    pod: &Pod,
    container: &Container,
    dir: &PodDir,
    env: &[(String, String)],
) -> Result<Vec<mounts::Mount>, String> {
    let by_name: BTreeMap<&str, &Volume> = volumes(pod).iter().map(|v| (v.name.as_str(), v)).collect();
    mounts::resolve(container, &by_name, dir, env)
}

#[cfg(test)]
mod tests;
