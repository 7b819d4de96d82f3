//! From `volumeMounts` to the mounts of a container.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use k8s_openapi::api::core::v1::{Container, Volume};

use super::PodDir;
use crate::env::expand;

/// One mount.
#[derive(Clone, Debug, PartialEq)]
pub struct Mount {
    /// Where the container sees it.
    pub container_path: String,
    /// Where it lies on this node.
    pub host_path: String,
    /// The container may only read.
    pub read_only: bool,
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
        let mut host_path =
            dir.volume(volume).ok_or_else(|| format!("volume {:?} has no place on this node", mount.name))?;
        let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(text), _) if !text.is_empty() => expanded(text, env)?,
            (_, Some(path)) => path.clone(),
            _ => String::new(),
        };
        if !sub_path.is_empty() {
            make_sub_path(&host_path, &sub_path, volume)?;
            host_path = host_path.join(&sub_path);
        }
        let from_object = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some();
        mounts.push(Mount {
            container_path: mount.mount_path.clone(),
            host_path: host_path.to_string_lossy().into_owned(),
            read_only: from_object || mount.read_only.unwrap_or(false) || dir.is_read_only(volume),
        });
    }
    Ok(mounts)
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

fn make_sub_path(root: &Path, sub_path: &str, volume: &Volume) -> Result<(), String> {
    let path = Path::new(sub_path);
    if path.is_absolute() {
        return Err(format!("error SubPath `{sub_path}` must not be an absolute path"));
    }
    if !path.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("unable to provision SubPath `{sub_path}`: must not contain '..'"));
    }
    let dir = Dir::open_ambient_dir(root, ambient_authority())
        .map_err(|e| format!("open {}: {e}", root.display()))?;
    // Opened inside the volume: a symbolic link that points out of it is refused.
    if dir.metadata(path).is_ok() {
        return Ok(());
    }
    let from_object = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    if from_object {
        return Err(format!("subPath {sub_path:?} does not exist in volume {:?}", volume.name));
    }
    dir.create_dir_all(path)
        .map_err(|e| format!("failed to create subPath directory for volumeMount {sub_path:?}: {e}"))
}
