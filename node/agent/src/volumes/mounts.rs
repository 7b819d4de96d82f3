//! From `volumeMounts` to the mounts of a container.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, Permissions, PermissionsExt};
use coracle_cri_api::v1::MountPropagation;
use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};

use super::PodDir;
use crate::env::expand;

/// One mount.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mount {
    /// Where the container sees it.
    pub container_path: String,
    /// Where it lies on this node: the volume, where only a place in it is mounted.
    pub host_path: String,
    /// The place in the volume; empty: all of it. Who writes to the volume may make a link of it at any time: it is never
    /// looked up but beneath the volume.
    pub sub_path: String,
    /// The container may only read.
    pub read_only: bool,
    /// Whose mounts below it the other sees: the node's, the container's or neither.
    pub propagation: MountPropagation,
}

/// Resolves every `volumeMount`; a `subPath` never leaves its volume.
pub fn resolve(
    container: &Container,
    volumes: &BTreeMap<&str, &Volume>,
    dir: &PodDir,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(mount.name.as_str());
        let volume = volume.ok_or_else(|| format!("volume {:?} of a mount does not exist", mount.name))?;
        let host_path =
            dir.volume(volume).ok_or_else(|| format!("volume {:?} has no place on this node", mount.name))?;
        let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(text), _) if !text.is_empty() => expanded(text, env)?,
            (_, Some(path)) => path.clone(),
            _ => String::new(),
        };
        // `.` has a meaning of its own in paths that the runtime is told.
        let host_path: PathBuf = host_path.components().collect();
        let sub_path = if sub_path.is_empty() {
            sub_path
        } else {
            make_sub_path(&host_path, &sub_path, volume)?.to_string_lossy().into_owned()
        };
        let from_object = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        mounts.push(Mount {
            container_path: mount.mount_path.clone(),
            host_path: host_path.to_string_lossy().into_owned(),
            sub_path,
            read_only: from_object || mount.read_only.unwrap_or(false) || dir.is_read_only(volume),
            propagation: propagation(container, mount)?,
        });
    }
    Ok(mounts)
}

fn propagation(container: &Container, mount: &VolumeMount) -> Result<MountPropagation, String> {
    let privileged = container.security_context.as_ref().and_then(|c| c.privileged) == Some(true);
    match mount.mount_propagation.as_deref() {
        None | Some("None") => Ok(MountPropagation::PropagationPrivate),
        Some("HostToContainer") => Ok(MountPropagation::PropagationHostToContainer),
        Some("Bidirectional") if privileged => Ok(MountPropagation::PropagationBidirectional),
        Some("Bidirectional") => Err(format!(
            "mountPropagation Bidirectional of {} is available only to privileged containers",
            mount.mount_path
        )),
        Some(other) => Err(format!("mountPropagation {other:?} of {} is not known", mount.mount_path)),
    }
}

/// A `subPathExpr`: unlike in a command, a variable that is missing or empty is an error.
fn expanded(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = RefCell::new(BTreeSet::new());
    let path = expand::expand(text, |name| {
        let value = env.iter().find(|(n, _)| n == name).map(|(_, value)| value).filter(|v| !v.is_empty());
        if value.is_none() {
            missing.borrow_mut().insert(name.to_owned());
        }
        value.cloned()
    });
    let missing: Vec<String> = missing.into_inner().into_iter().collect();
    if missing.is_empty() { Ok(path) } else { Err(format!("missing value for {}", missing.join(", "))) }
}

/// Makes the place if it is not there, as open as its volume. Returns its path in the volume; empty: all of it.
fn make_sub_path(root: &Path, sub_path: &str, volume: &Volume) -> Result<PathBuf, String> {
    let path = Path::new(sub_path);
    if path.is_absolute() {
        return Err(format!("error SubPath `{sub_path}` must not be an absolute path"));
    }
    if !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("unable to provision SubPath `{sub_path}`: must not contain '..'"));
    }
    let path: PathBuf = path.components().filter(|c| *c != Component::CurDir).collect();
    if path.as_os_str().is_empty() {
        return Ok(path);
    }
    let dir = Dir::open_ambient_dir(root, ambient_authority())
        .map_err(|e| format!("open {}: {e}", root.display()))?;
    // Opened inside the volume: a symbolic link that points out of it is refused.
    if dir.metadata(&path).is_ok() {
        return Ok(path);
    }
    let from_object = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    if from_object {
        return Err(format!("subPath {sub_path:?} does not exist in volume {:?}", volume.name));
    }
    make_beneath(&dir, &path)
        .map_err(|e| format!("failed to create subPath directory for volumeMount {sub_path:?}: {e}"))?;
    Ok(path)
}

fn make_beneath(volume: &Dir, path: &Path) -> std::io::Result<()> {
    let mode = volume.dir_metadata()?.permissions().mode() & 0o777;
    for made in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
        match volume.create_dir(made) {
            Ok(()) => volume.open_dir(made)?.set_permissions(".", Permissions::from_mode(mode))?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    // What was there may be a link that leads out.
    volume.open_dir(path).map(drop)
}
