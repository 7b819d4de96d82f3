//! wasi:filesystem: a container's mounts as preopened directories; nothing else of the host's files.

use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use cap_std::{ambient_authority, fs::Dir};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::protocol::Mount;

/// The volume, and the place in it, of a path that tells them apart by `/./`.
fn parts(path: &Path) -> Option<(&Path, &Path)> {
    let (volume, below) = path.to_str()?.split_once("/./")?;
    Some((Path::new(if volume.is_empty() { "/" } else { volume }), Path::new(below)))
}

/// Opens what is mounted. A place in a volume is looked up beneath the volume each time: who writes to the volume may have
/// made a link of it meanwhile.
pub(crate) fn open(host_path: &Path) -> io::Result<Dir> {
    let Some((volume, below)) = parts(host_path) else {
        return Dir::open_ambient_dir(host_path, ambient_authority());
    };
    Dir::open_ambient_dir(volume, ambient_authority())?.open_dir(below)
}

/// Whether every mount can be granted; the words name the mount that cannot.
pub(crate) fn validate(mounts: &[Mount]) -> Result<(), String> {
    for mount in mounts {
        if !mount.guest_path.starts_with('/') {
            return Err(format!("the mount path {:?} is not absolute", mount.guest_path));
        }
        open(&mount.host_path).map_err(|error| {
            let words = match error.kind() {
                io::ErrorKind::NotADirectory => "a wasm container mounts directories only".to_owned(),
                _ => error.to_string(),
            };
            format!("mounting {} at {}: {words}", mount.host_path.display(), mount.guest_path)
        })?;
    }
    Ok(())
}

/// What one instance gets.
pub(crate) fn prepare(wasi: &mut WasiCtxBuilder, mounts: &[Mount]) -> wasmtime::Result<()> {
    for mount in mounts {
        let perms = if mount.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
        let failed = |error: wasmtime::Error| {
            error.context(format!("mounting {} at {}", mount.host_path.display(), mount.guest_path))
        };
        if parts(&mount.host_path).is_none() {
            wasi.preopened_dir(&mount.host_path, &mount.guest_path, perms).map_err(failed)?;
            continue;
        }
        // The engine takes paths only: this one names what is open here, whatever became of its name.
        let dir = open(&mount.host_path).map_err(|error| failed(error.into()))?;
        let opened = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
        wasi.preopened_dir(opened, &mount.guest_path, perms).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(host_path: PathBuf) -> Mount {
        Mount { host_path, guest_path: "/sub".into(), read_only: false }
    }

    #[test]
    fn a_place_in_a_volume_stays_there_whatever_is_made_of_it() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("volume");
        std::fs::create_dir_all(volume.join("x/y")).unwrap();
        std::fs::write(volume.join("file"), "").unwrap();
        std::fs::create_dir(root.path().join("secret")).unwrap();
        let place = mount(volume.join("./x"));
        let look = || {
            let granted = prepare(&mut wasmtime_wasi::WasiCtx::builder(), std::slice::from_ref(&place));
            assert_eq!(validate(std::slice::from_ref(&place)).is_ok(), granted.is_ok());
            let dir = open(&place.host_path).ok()?;
            Some(dir.entries().unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>())
        };
        assert_eq!(look(), Some(vec!["y".into()]));
        std::fs::remove_dir_all(volume.join("x")).unwrap();
        for out in ["../secret", "../../../../../../../../..", "/", root.path().to_str().unwrap()] {
            std::os::unix::fs::symlink(out, volume.join("x")).unwrap();
            assert_eq!(look(), None, "{out}");
            std::fs::remove_file(volume.join("x")).unwrap();
        }
        // Within the volume a link is followed.
        std::fs::create_dir_all(volume.join("other/z")).unwrap();
        std::os::unix::fs::symlink("other", volume.join("x")).unwrap();
        assert_eq!(look(), Some(vec!["z".into()]));
        let words = validate(&[mount(volume.join("./file"))]).unwrap_err();
        assert!(words.contains("a wasm container mounts directories only"), "{words}");
    }

    #[test]
    fn the_first_mark_tells_volume_and_place_apart() {
        let table = [
            ("/v/./x", Some(("/v", "x"))),
            ("/v/./x/./y", Some(("/v", "x/./y"))),
            ("/./x", Some(("/", "x"))),
            ("/v/x", None),
            ("/v/.x/y", None),
        ];
        for (path, expected) in table {
            let expected = expected.map(|(volume, below)| (Path::new(volume), Path::new(below)));
            assert_eq!(parts(Path::new(path)), expected, "{path}");
        }
    }
}
