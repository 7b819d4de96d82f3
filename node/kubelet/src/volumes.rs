//! A pod's volumes: made before its containers, removed after them.
//!
//! Everything is written through a directory handle (cap-std), so that no name in a ConfigMap can reach outside.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume as Spec,
};
use kube::{Api, Client};

use crate::pods::config::{ConfigError, Facts, pod_field};

/// The volumes of a pod, by name.
pub type Volumes = HashMap<String, Volume>;

/// A volume that is ready to be mounted.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The directory or file on the node.
    pub path: PathBuf,
    /// Never writable for containers.
    pub read_only: bool,
}

const DEFAULT_MODE: u32 = 0o644;

type Files = BTreeMap<String, (Vec<u8>, u32)>;

/// Makes every volume of a pod.
///
/// # Errors
/// In words for a `FailedMount` event.
pub async fn make(
    client: &Client,
    pod: &Pod,
    root: &Path,
    facts: &Facts<'_>,
) -> Result<Volumes, ConfigError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut volumes = Volumes::new();
    for spec in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let volume = one(client, pod, &pod_dir(root, uid), spec, facts).await;
        let volume = volume.map_err(|error| {
            ConfigError(format!("MountVolume.SetUp failed for volume {:?} : {error}", spec.name))
        })?;
        volumes.insert(spec.name.clone(), volume);
    }
    Ok(volumes)
}

/// Removes the volumes of a pod; a hostPath stays.
pub fn remove(root: &Path, uid: &str) {
    if let Err(error) = std::fs::remove_dir_all(pod_dir(root, uid))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(uid, %error, "remove the volumes");
    }
}

fn pod_dir(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid).join("volumes")
}

async fn one(
    client: &Client,
    pod: &Pod,
    dir: &Path,
    spec: &Spec,
    facts: &Facts<'_>,
) -> Result<Volume, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let path = dir.join(&spec.name);
    if spec.empty_dir.is_some() {
        std::fs::create_dir_all(&path).map_err(|e| ConfigError(format!("create {}: {e}", path.display())))?;
        return Ok(Volume { path, read_only: false });
    }
    if let Some(host) = &spec.host_path {
        return host_path(&host.path, host.type_.as_deref());
    }
    let files = if let Some(source) = &spec.config_map {
        let mode = mode(source.default_mode);
        config_map(client, namespace, &source.name, source.items.as_deref(), source.optional, mode).await?
    } else if let Some(source) = &spec.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        secret(client, namespace, name, source.items.as_deref(), source.optional, mode(source.default_mode))
            .await?
    } else if let Some(source) = &spec.downward_api {
        downward(pod, source.items.as_deref().unwrap_or_default(), facts, mode(source.default_mode))?
    } else if let Some(source) = &spec.projected {
        projected(client, pod, source, facts).await?
    } else {
        return Err(ConfigError("this kind of volume is not supported on this node yet".to_owned()));
    };
    write(&path, &files).map_err(|error| ConfigError(format!("write {}: {error}", path.display())))?;
    Ok(Volume { path, read_only: true })
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(DEFAULT_MODE) & 0o777
}

fn host_path(path: &str, kind: Option<&str>) -> Result<Volume, ConfigError> {
    let path = PathBuf::from(path);
    let wrong = |what: &str| {
        Err(ConfigError(format!("hostPath type check failed: {} is not a {what}", path.display())))
    };
    match kind.unwrap_or_default() {
        "DirectoryOrCreate" => {
            std::fs::create_dir_all(&path)
                .map_err(|e| ConfigError(format!("create {}: {e}", path.display())))?;
        }
        "FileOrCreate" => {
            let made = std::fs::OpenOptions::new().create(true).append(true).open(&path);
            made.map_err(|e| ConfigError(format!("create {}: {e}", path.display())))?;
        }
        "Directory" if !path.is_dir() => return wrong("directory"),
        "File" if !path.is_file() => return wrong("file"),
        _ => {}
    }
    Ok(Volume { path, read_only: false })
}

/// The files of a ConfigMap: all of them, or the items that are named.
async fn config_map(
    client: &Client,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<Files, ConfigError> {
    let found = Api::<ConfigMap>::namespaced(client.clone(), namespace).get_opt(name).await;
    let found = found.map_err(|error| ConfigError(format!("read configmap {name:?}: {error}")))?;
    let Some(map) = found else { return missing("configmap", name, optional) };
    let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
    let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    choose(text.chain(binary).collect(), items, optional, mode)
}

async fn secret(
    client: &Client,
    namespace: &str,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<Files, ConfigError> {
    let found = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await;
    let found = found.map_err(|error| ConfigError(format!("read secret {name:?}: {error}")))?;
    let Some(secret) = found else { return missing("secret", name, optional) };
    let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
    choose(data.collect(), items, optional, mode)
}

fn missing(kind: &str, name: &str, optional: Option<bool>) -> Result<Files, ConfigError> {
    if optional.unwrap_or(false) {
        Ok(Files::new())
    } else {
        Err(ConfigError(format!("{kind} {name:?} not found")))
    }
}

fn choose(
    mut data: BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: u32,
) -> Result<Files, ConfigError> {
    let Some(items) = items else {
        return Ok(data.into_iter().map(|(key, bytes)| (key, (bytes, mode))).collect());
    };
    let mut files = Files::new();
    for item in items {
        match data.remove(&item.key) {
            Some(bytes) => {
                let own = item.mode.and_then(|one| u32::try_from(one).ok()).map_or(mode, |one| one & 0o777);
                files.insert(item.path.clone(), (bytes, own));
            }
            None if optional.unwrap_or(false) => {}
            None => return Err(ConfigError(format!("references non-existent config key: {}", item.key))),
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    facts: &Facts<'_>,
    mode: u32,
) -> Result<Files, ConfigError> {
    let mut files = Files::new();
    for item in items {
        let Some(field) = &item.field_ref else {
            return Err(ConfigError(format!(
                "{}: resourceFieldRef in volumes is not supported yet",
                item.path
            )));
        };
        let value = pod_field(pod, &field.field_path, facts)
            .ok_or_else(|| ConfigError(format!("fieldPath {:?} is not supported", field.field_path)))?;
        files.insert(item.path.clone(), (value.into_bytes(), mode));
    }
    Ok(files)
}

async fn projected(
    client: &Client,
    pod: &Pod,
    source: &ProjectedVolumeSource,
    facts: &Facts<'_>,
) -> Result<Files, ConfigError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mode = mode(source.default_mode);
    let mut files = Files::new();
    for one in source.sources.iter().flatten() {
        if let Some(map) = &one.config_map {
            files.extend(
                config_map(client, namespace, &map.name, map.items.as_deref(), map.optional, mode).await?,
            );
        } else if let Some(one) = &one.secret {
            files.extend(
                secret(client, namespace, &one.name, one.items.as_deref(), one.optional, mode).await?,
            );
        } else if let Some(api) = &one.downward_api {
            files.extend(downward(pod, api.items.as_deref().unwrap_or_default(), facts, mode)?);
        } else {
            return Err(ConfigError(
                "service account tokens in projected volumes are not supported yet".to_owned(),
            ));
        }
    }
    Ok(files)
}

/// Writes files so that readers see all of the old ones or all of the new: a new folder, and `..data` switched to it.
fn write(path: &Path, files: &Files) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    let dir = Dir::open_ambient_dir(path, ambient_authority())?;
    let version = format!("..{}", k8s_openapi::jiff::Timestamp::now().as_nanosecond());
    dir.create_dir(&version)?;
    let inner = dir.open_dir(&version)?;
    for (name, (bytes, mode)) in files {
        if let Some(parent) = Path::new(name).parent().filter(|parent| !parent.as_os_str().is_empty()) {
            inner.create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(*mode);
        let mut file = inner.open_with(name, &options)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(*mode))?;
    }
    let before = dir.read_link("..data").ok();
    dir.remove_file("..data.new").or_else(absent)?;
    dir.symlink(&version, "..data.new")?;
    dir.rename("..data.new", &dir, "..data")?;
    for name in files.keys() {
        let first =
            Path::new(name).components().next().map(|part| part.as_os_str().to_owned()).unwrap_or_default();
        if dir.symlink_metadata(&first).is_err() {
            dir.symlink(Path::new("..data").join(&first), &first)?;
        }
    }
    if let Some(before) = before {
        dir.remove_dir_all(before)?;
    }
    Ok(())
}

fn absent(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_as_one_and_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let files = |text: &str| {
            Files::from([
                ("a".to_owned(), (text.as_bytes().to_vec(), 0o600)),
                ("d/b".to_owned(), (vec![1], 0o644)),
            ])
        };
        write(&path, &files("1")).unwrap();
        write(&path, &files("2")).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "2");
        assert_eq!(std::fs::read(path.join("d/b")).unwrap(), [1]);
        let escape = Files::from([("../../evil".to_owned(), (vec![], 0o644))]);
        assert!(write(&path, &escape).is_err());
        assert!(!dir.path().join("evil").exists());
    }
}
