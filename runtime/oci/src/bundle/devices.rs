//! Devices of the host that a container is given.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use coracle_cri_api::v1;
use serde_json::{Value, json};

use super::{Error, wrong};

/// The most devices of the host that a privileged container is given.
const MAX_DEVICES: usize = 4096;

/// A device of the host under a name in the container, and the access that it gets.
pub(super) struct Device<'a> {
    pub host: &'a Path,
    pub path: &'a str,
    /// Of `r`, `w` and `m`.
    pub permissions: &'a str,
}

pub(super) fn add(
    spec: &mut Value,
    config: &v1::ContainerConfig,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<(), Error> {
    let linux = &mut spec["linux"];
    linux["devices"] = json!([]);
    if security.privileged {
        linux["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        for (path, kind) in host_devices() {
            linux["devices"]
                .as_array_mut()
                .into_iter()
                .for_each(|list| list.push(node(&path, &path.display().to_string(), kind)));
        }
        return Ok(());
    }
    linux["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}]);
    for device in &config.devices {
        let host = Path::new(&device.host_path);
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        if host.is_dir() {
            for entry in std::fs::read_dir(host).into_iter().flatten().flatten().take(MAX_DEVICES) {
                let inner = format!("{}/{}", device.container_path, entry.file_name().to_string_lossy());
                if found(&entry.path()).is_some() {
                    grant(spec, &Device { host: &entry.path(), path: &inner, permissions })?;
                }
            }
        } else {
            grant(spec, &Device { host, path: &device.container_path, permissions })?;
        }
    }
    Ok(())
}

/// Type (`c` or `b`), major, minor, mode, owner.
type Kind = (&'static str, u32, u32, u32, u32, u32);

fn found(path: &Path) -> Option<Kind> {
    let meta = std::fs::metadata(path).ok()?;
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Some((kind, major, minor, meta.mode() & 0o7777, meta.uid(), meta.gid()))
}

fn node(_host: &Path, path: &str, (kind, major, minor, mode, uid, gid): Kind) -> Value {
    json!({"path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode, "uid": uid, "gid": gid})
}

/// Gives a container a device.
pub(super) fn grant(spec: &mut Value, device: &Device<'_>) -> Result<(), Error> {
    let Some(kind) = found(device.host) else {
        return wrong(format!("device {}: there is no such device on this node", device.host.display()));
    };
    if device.permissions.is_empty() || !device.permissions.chars().all(|c| "rwm".contains(c)) {
        return wrong(format!(
            "device {}: permissions {:?} are not of r, w and m",
            device.path, device.permissions
        ));
    }
    let rule = json!({"allow": true, "type": kind.0, "major": kind.1, "minor": kind.2, "access": device.permissions});
    let linux = &mut spec["linux"];
    if let Some(list) = linux["devices"].as_array_mut() {
        list.retain(|d| d["path"] != device.path);
        list.push(node(device.host, device.path, kind));
    }
    if let Some(list) = linux["resources"]["devices"].as_array_mut() {
        list.push(rule);
    }
    Ok(())
}

/// The devices below /dev, without terminals and what every container has anyway.
fn host_devices() -> Vec<(PathBuf, Kind)> {
    let own =
        ["pts", "shm", "mqueue", "fd", "console", "ptmx", "null", "zero", "full", "random", "urandom", "tty"];
    let mut devices = Vec::new();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if devices.len() >= MAX_DEVICES || own.iter().any(|n| entry.file_name() == *n) {
                continue;
            }
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_symlink() => {}
                _ => devices.extend(found(&entry.path()).map(|kind| (entry.path(), kind))),
            }
        }
    }
    devices
}
