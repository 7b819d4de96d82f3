//! Volumes that are devices (`volumeMode: Block`): containers have them by `volumeDevices`, not by `volumeMounts`.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::claims::Claimed;
use super::{Error, PodDir, volumes};
use crate::pods::state::{init_containers, main_containers};

/// A device for a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Where the container sees it.
    pub container_path: String,
    /// Where it lies on this node.
    pub host_path: String,
    /// The container may only read.
    pub read_only: bool,
}

/// Whether containers use each claim's volume as what it is, in the kubelet's words.
///
/// # Errors
/// A device that is mounted, or a filesystem that is used as a device.
pub fn check(pod: &Pod, dir: &PodDir) -> Result<(), Error> {
    let all = || main_containers(pod).iter().chain(init_containers(pod));
    for volume in volumes(pod) {
        let name = &volume.name;
        let mounted = all().any(|c| c.volume_mounts.iter().flatten().any(|m| m.name == *name));
        let device = all().any(|c| c.volume_devices.iter().flatten().any(|d| d.name == *name));
        let message = match dir.claimed(name).map(Claimed::is_block) {
            Some(true) if mounted => {
                format!("volume {name} has volumeMode Block, but is specified in volumeMounts")
            }
            Some(false) if device => {
                format!("volume {name} has volumeMode Filesystem, but is specified in volumeDevices")
            }
            None if device => format!("volume {name} is of no claim, but is specified in volumeDevices"),
            _ => continue,
        };
        return Err(Error::SetUp { volume: name.clone(), message });
    }
    Ok(())
}

/// Whether there is a device at a path.
///
/// # Errors
/// What is there instead.
pub fn is_device(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(found) if found.file_type().is_block_device() => Ok(()),
        Ok(_) => Err(format!("path {:?} is no block device", path.display())),
        Err(error) => Err(format!("path {:?}: {error}", path.display())),
    }
}

/// The devices of a container.
///
/// # Errors
/// Which one it cannot have: no volume of that name is a device of this node, or it is no Linux container.
pub fn of(pod: &Pod, spec: &Container, dir: &PodDir, linux: bool) -> Result<Vec<Device>, String> {
    let one = |wanted: &k8s_openapi::api::core::v1::VolumeDevice| {
        let (name, path) = (&wanted.name, &wanted.device_path);
        if !linux {
            return Err(format!("volume device {name:?} at {path}: a wasm container has no devices"));
        }
        let volume = volumes(pod).iter().find(|volume| volume.name == *name);
        let claimed = dir.claimed(name).filter(|claimed| claimed.is_block());
        let place = volume.zip(claimed).and_then(|(volume, claimed)| Some((dir.volume(volume)?, claimed)));
        let (place, claimed) = place
            .ok_or_else(|| format!("cannot find volume {name:?} to pass into container {:?}", spec.name))?;
        is_device(&place)?;
        Ok(Device {
            container_path: path.clone(),
            host_path: place.to_string_lossy().into_owned(),
            read_only: claimed.read_only,
        })
    };
    spec.volume_devices.iter().flatten().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::claims::Claims;
    use serde_json::{Value, json};

    fn pod(container: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": [container],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]}}))
        .expect("a Pod")
    }

    fn dir(root: &Path, mode: &str, path: &str) -> PodDir {
        let spec = json!({"local": {"path": path}, "volumeMode": mode});
        let spec = serde_json::from_value(spec).expect("a spec");
        let claimed = Claimed { name: "pv".into(), spec, read_only: true };
        PodDir::new(root, "u").expect("a directory").with_claims(Claims::from([("v".to_owned(), claimed)]))
    }

    #[test]
    fn volumes_are_used_as_what_they_are() {
        let root = tempfile::tempdir().expect("a directory");
        let mounts = pod(json!({"name": "a", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
        let devices = pod(json!({"name": "a", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}));
        let words =
            |pod: &Pod, mode: &str| check(pod, &dir(root.path(), mode, "/x")).map_err(|e| e.to_string());
        assert_eq!((words(&mounts, "Filesystem"), words(&devices, "Block")), (Ok(()), Ok(())));
        assert!(
            words(&mounts, "Block")
                .is_err_and(|w| w.contains("has volumeMode Block, but is specified in volumeMounts"))
        );
        let words = words(&devices, "Filesystem").expect_err("no device");
        assert!(words.contains("has volumeMode Filesystem, but is specified in volumeDevices"), "{words}");
        let none = PodDir::new(root.path(), "u").expect("a directory");
        assert!(check(&devices, &none).is_err_and(|e| e.to_string().contains("of no claim")));
    }

    #[test]
    fn containers_get_devices_and_nothing_else() {
        let root = tempfile::tempdir().expect("a directory");
        let pod = pod(json!({"name": "a", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}));
        let spec = &main_containers(&pod)[0];
        let of = |path: &str, linux| of(&pod, spec, &dir(root.path(), "Block", path), linux);
        let refused = of("/dev/null", true).expect_err("a character device");
        assert!(refused.contains("is no block device"), "{refused}");
        assert!(of("/none/such", true).is_err_and(|w| w.contains("No such file")));
        let wasm = "volume device \"v\" at /dev/v: a wasm container has no devices";
        assert_eq!(of("/dev/null", false), Err(wasm.into()));
        let other = dir(root.path(), "Filesystem", "/x");
        assert!(super::of(&pod, spec, &other, true).is_err_and(|w| w.contains("cannot find volume \"v\"")));
        if nix::unistd::geteuid().is_root() {
            let path = root.path().join("block");
            let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
            nix::sys::stat::mknod(&path, kind, mode, nix::sys::stat::makedev(7, 200)).expect("a device");
            let host_path = path.display().to_string();
            let expected =
                Device { container_path: "/dev/v".into(), host_path: host_path.clone(), read_only: true };
            assert_eq!(of(&host_path, true), Ok(vec![expected]));
        }
    }
}
