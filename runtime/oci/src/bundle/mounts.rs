//! What a container sees besides its image: the kernel's filesystems, the pod's files, volumes.

use std::path::{Component, Path};

use coracle_cri_api::v1;
use serde_json::{Value, json};

use super::{Error, Parts, wrong};

fn kernel(privileged: bool, own_network: bool) -> Vec<Value> {
    let mut list = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"]}),
    ];
    let writable = if privileged { "rw" } else { "ro" };
    // A sysfs of its own shows the devices of the pod's network; without one, the host's is shown.
    list.push(if own_network {
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", writable]})
    } else {
        json!({"destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "rslave", "nosuid", "noexec", "nodev", writable]})
    });
    list.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", writable]}));
    list
}

pub(super) fn mounts(
    parts: &Parts<'_>,
    security: &v1::LinuxContainerSecurityContext,
) -> Result<Vec<Value>, Error> {
    let given = &parts.config.mounts;
    let taken = |path: &str| given.iter().any(|m| clean(&m.container_path).as_deref() == Some(path));
    let mut list = kernel(security.privileged, parts.shared.network.is_some());
    list.retain(|m| !m["destination"].as_str().is_some_and(taken));
    let writable = if security.readonly_rootfs { "ro" } else { "rw" };
    for (path, name) in
        [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")]
    {
        if !taken(path) {
            list.push(json!({"destination": path, "type": "bind", "source": parts.shared.dir.join(name),
                "options": ["rbind", "rprivate", writable]}));
        }
    }
    if !taken("/dev/shm") {
        let source = match parts.shared.ipc {
            Some(_) => parts.shared.dir.join("shm"),
            None => "/dev/shm".into(),
        };
        list.push(json!({"destination": "/dev/shm", "type": "bind", "source": source,
            "options": ["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"]}));
    }
    // Mounts on shorter paths come first, so that none hides another.
    let mut volumes = given.iter().map(volume).collect::<Result<Vec<_>, _>>()?;
    volumes.sort_by_key(|(path, _)| Path::new(path).components().count());
    list.extend(volumes.into_iter().map(|(_, mount)| mount));
    Ok(list)
}

/// How the container's root is to see mounts: one that cannot give the host any has no mount that can.
pub(super) fn of_root(config: &v1::ContainerConfig) -> Option<&'static str> {
    let both = |m: &v1::Mount| m.propagation() == v1::MountPropagation::PropagationBidirectional;
    config.mounts.iter().any(both).then_some("rshared")
}

/// An absolute path without `..`, tidied; a container path may also be given relative to the root.
fn clean(path: &str) -> Option<String> {
    let mut tidy = String::new();
    for part in Path::new(path).components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => {
                tidy.push('/');
                tidy.push_str(part.to_str()?);
            }
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!tidy.is_empty()).then_some(tidy)
}

fn volume(mount: &v1::Mount) -> Result<(String, Value), Error> {
    if mount.image.is_some() {
        return wrong(format!("mount {}: image volumes are not supported yet", mount.container_path));
    }
    let Some(path) = clean(&mount.container_path) else {
        return wrong(format!("mount {:?}: no such place in a container", mount.container_path));
    };
    let host = Path::new(&mount.host_path);
    if !host.is_absolute() {
        return wrong(format!("mount {path}: the host path {:?} is not absolute", mount.host_path));
    }
    // A folder that is missing is made, as other runtimes do.
    let source = match host.canonicalize() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(host).and_then(|()| host.canonicalize())
        }
        other => other,
    };
    let source = source.map_err(|e| Error(format!("mount {path}: {}: {e}", mount.host_path)))?;
    let propagation = match mount.propagation() {
        v1::MountPropagation::PropagationPrivate => "rprivate",
        v1::MountPropagation::PropagationHostToContainer => "rslave",
        v1::MountPropagation::PropagationBidirectional => "rshared",
    };
    if mount.recursive_read_only {
        return wrong(format!("mount {path}: recursive read-only mounts are not supported yet"));
    }
    let access = if mount.readonly { "ro" } else { "rw" };
    let options = ["rbind", propagation, access];
    let value = json!({"destination": path, "type": "bind", "source": source, "options": options});
    Ok((path, value))
}
