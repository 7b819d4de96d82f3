//! Volumes of pods: what goes into them (`sources`, pure) and how it gets there (`atomic`). Everything below a pod's
//! directory is written through cap-std, so that no key or path of an object can name anything outside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use k8s_openapi::api::core::v1::{Container, Pod, Volume};

use crate::env::{Sources, fields::Facts};

use claims::{Claimed, Claims};
pub(crate) use ownership::own;

pub mod atomic;
pub mod claims;
pub mod devices;
mod empty_dir;
pub mod host_path;
pub mod huge_pages;
pub mod local;
pub mod memory;
pub mod mounting;
pub mod mounts;
pub mod ownership;
pub mod sources;
pub mod stats;
pub mod sub_paths;
pub mod used;

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
    /// Where persistent data of this node lies.
    storage: PathBuf,
    /// The agent's root directory, and the pod's uid.
    root: PathBuf,
    uid: String,
    /// What the pod's claims are bound to.
    claims: Claims,
}

/// Whether a name can be one component of a path.
pub(crate) fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

impl PodDir {
    /// The directory of a pod; `None` when the uid could name something else.
    pub fn new(root: &Path, uid: &str) -> Option<Self> {
        is_component(uid).then(|| Self {
            path: root.join("pods").join(uid),
            storage: claims::storage(root),
            root: root.to_owned(),
            uid: uid.to_owned(),
            claims: Claims::new(),
        })
    }

    /// The same, with the volumes that the pod's claims are bound to.
    pub fn with_claims(self, claims: Claims) -> Self {
        Self { claims, ..self }
    }

    /// Where a volume of the pod lies on this node.
    pub fn volume(&self, volume: &Volume) -> Option<PathBuf> {
        if let Some(host_path) = &volume.host_path {
            return Some(PathBuf::from(&host_path.path));
        }
        if is_memory(volume)
            && let Some(directory) = memory::directory(&self.root, &self.uid)
        {
            return is_component(&volume.name).then(|| directory.join(&volume.name));
        }
        let claimed = self.claims.get(&volume.name);
        if let Some(directory) = claimed.and_then(Claimed::directory) {
            return Some(PathBuf::from(directory));
        }
        if let Some(path) = crate::csi::volume::place(&self.path, volume, claimed) {
            return Some(path);
        }
        let plugin = match plugin(volume) {
            _ if volume.empty_dir.is_some() => "kubernetes.io~empty-dir",
            Some(plugin) => plugin,
            None if volume.nfs.is_some() || claimed.is_some_and(|c| c.spec.nfs.is_some()) => {
                "kubernetes.io~nfs"
            }
            None => return None,
        };
        is_component(&volume.name).then(|| self.path.join("volumes").join(plugin).join(&volume.name))
    }

    /// What a volume of the pod is bound to.
    pub fn claimed(&self, volume: &str) -> Option<&Claimed> {
        self.claims.get(volume)
    }

    /// Whether a volume is only to be read, whatever the container's mount says.
    pub fn is_read_only(&self, volume: &Volume) -> bool {
        self.claims.get(&volume.name).is_some_and(|c| c.read_only)
    }

    /// Removes the pod's own volumes, and unmounts those of others. Its hosts file and last words stay.
    pub fn remove_volumes(&self) -> std::io::Result<()> {
        sub_paths::remove(&self.path)?;
        let volumes = self.path.join("volumes");
        mounting::unmount_below(&volumes)?;
        memory::remove(&self.root, &self.uid)?;
        remove_all(&volumes)
    }

    /// Removes everything that the pod has here.
    pub fn remove(&self) -> std::io::Result<()> {
        self.remove_volumes()?;
        mounting::unmount_below(&self.path)?;
        remove_all(&self.path)
    }
}

fn remove_all(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Takes away what the volumes of pods whose containers have ended hold of this machine besides files: memory, and shares
/// of the network. What a storage driver has published stays with it. `outliving` are the uids of pods whose containers run.
///
/// # Errors
/// What stays, of every pod where something does.
pub fn let_go(root: &Path, outliving: &BTreeSet<String>) -> std::io::Result<()> {
    let root = match root.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        root => root?,
    };
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let pods = pods.filter_map(|entry| entry.file_name().into_string().ok());
    let ended = pods.filter(|uid| !outliving.contains(uid));
    let failed = ended.filter_map(|uid| let_go_of_pod(&root, &uid).err().map(|e| format!("pod {uid}: {e}")));
    match failed.collect::<Vec<_>>().join("; ") {
        words if words.is_empty() => Ok(()),
        words => Err(std::io::Error::other(words)),
    }
}

fn let_go_of_pod(root: &Path, uid: &str) -> std::io::Result<()> {
    let own = root.join("pods").join(uid);
    for kind in std::fs::read_dir(own.join("volumes")).into_iter().flatten().flatten() {
        if kind.file_name() != crate::csi::volume::PLUGIN {
            mounting::unmount_below(&kind.path())?;
        }
    }
    sub_paths::remove(&own)?;
    memory::remove(root, uid)
}

/// Whether a volume is to be in memory.
pub fn is_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"))
}

/// Whether what is written to an emptyDir takes of the node's disk.
pub fn is_on_disk(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref().unwrap_or_default().is_empty())
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
        let claimed = volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some();
        let mounted = volume.empty_dir.is_some()
            || volume.host_path.is_some()
            || volume.nfs.is_some()
            || volume.csi.is_some();
        let known = claimed || mounted || plugin(volume).is_some();
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
        if let Some(source) = &volume.host_path {
            host_path::check(source).map_err(failed)?;
            continue;
        }
        if let Some(claimed) = dir.claims.get(&volume.name) {
            claimed.supported().map_err(|kind| Error::Unsupported { volume: volume.name.clone(), kind })?;
        }
        // Published by its driver before.
        if volume.csi.is_some() || dir.claims.get(&volume.name).is_some_and(|c| c.spec.csi.is_some()) {
            continue;
        }
        let path =
            dir.volume(volume).ok_or_else(|| failed("the name of the volume is not a file name".into()))?;
        if let Some(claimed) = dir.claims.get(&volume.name)
            && let Some(directory) = claimed.directory().map(Path::new)
        {
            let made = match claimed.is_block() {
                true => devices::is_device(directory),
                false => check_directory(dir, directory).and_then(|()| local::give(pod, dir, claimed)),
            };
            made.map_err(failed)?;
            continue;
        }
        if let Some(source) = &volume.empty_dir {
            empty_dir::set_up(pod, volume, source, dir, &path).map_err(failed)?;
            continue;
        }
        std::fs::create_dir_all(&path).map_err(|e| failed(format!("create {}: {e}", path.display())))?;
        let claimed = dir.claims.get(&volume.name);
        if let Some(share) = volume.nfs.clone().or_else(|| claimed.and_then(Claimed::nfs)) {
            let options = claimed.and_then(|c| c.spec.mount_options.clone()).unwrap_or_default();
            mounting::nfs(&share, &options, &path).map_err(failed)?;
            continue;
        }
        let files = sources::files(pod, volume, sources, facts).map_err(failed)?;
        let target = Dir::open_ambient_dir(&path, ambient_authority())
            .map_err(|e| failed(format!("open {}: {e}", path.display())))?;
        let group = ownership::group(pod, true);
        changed |= atomic::write(&target, &files, group).map_err(|e| failed(e.to_string()))?;
    }
    Ok(changed)
}

/// A directory of a persistent volume: those that are made on demand are made at their first mount.
fn check_directory(dir: &PodDir, path: &Path) -> Result<(), String> {
    let relative = path.components().any(|c| c == std::path::Component::ParentDir);
    if !path.is_absolute() || relative {
        return Err(format!("path {:?} of the volume must be absolute and without ..", path.display()));
    }
    if path.parent() == Some(dir.storage.as_path()) && !path.exists() {
        std::fs::create_dir_all(path).map_err(|e| format!("create {}: {e}", path.display()))?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        return std::fs::set_permissions(path, open).map_err(|e| format!("open {}: {e}", path.display()));
    }
    match path.exists() {
        true => Ok(()),
        false => Err(format!("path {:?} does not exist", path.display())),
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
