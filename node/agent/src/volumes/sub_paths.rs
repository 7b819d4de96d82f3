//! Places in volumes (`subPath`) for Linux containers. Who writes to a volume may make a link of such a place at any time,
//! and a runtime follows links: so the place is opened beneath its volume, and what was opened is mounted in the pod's own
//! directory (`volume-subpaths`), where no container writes. The kubelet does the same.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open as open_path, openat2};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::mounts::Mount;
use super::{PodDir, is_component, mounting};

const DIRECTORY: &str = "volume-subpaths";
/// Somebody may rename what is on the way; the kernel then asks to look again.
const TRIES: usize = 100;

/// Gives mounts of places in volumes a place of their own in the pod's directory. Blocking.
///
/// # Errors
/// When such a place cannot be opened or mounted. An agent that may not mount has no safe way.
pub fn bind(dir: &PodDir, container: &str, mounts: &mut [Mount]) -> Result<(), String> {
    for (index, one) in mounts.iter_mut().enumerate().filter(|(_, mount)| !mount.sub_path.is_empty()) {
        let failed = |why: String| format!("subPath {:?} of {}: {why}", one.sub_path, one.host_path);
        if !nix::unistd::geteuid().is_root() {
            return Err(failed("the node agent may not mount: it has to run as root".to_owned()));
        }
        if !is_component(container) {
            return Err(failed(format!("the container's name {container:?} is not a file name")));
        }
        let opened = open(Path::new(&one.host_path), &one.sub_path).map_err(|e| failed(e.to_string()))?;
        let place = dir.path.join(DIRECTORY).join(container).join(index.to_string());
        mount_at(&opened, &place).map_err(|e| failed(format!("mount it at {}: {e}", place.display())))?;
        one.host_path = place.to_string_lossy().into_owned();
        one.sub_path = String::new();
    }
    Ok(())
}

/// Links are followed within the volume only.
fn open(volume: &Path, sub_path: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open_path(volume, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    for _ in 0..TRIES {
        match openat2(&root, sub_path, OpenHow::new().flags(flags).resolve(beneath)) {
            Err(Errno::EAGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::EAGAIN)
}

fn mount_at(opened: &OwnedFd, place: &Path) -> std::io::Result<()> {
    // Of the container before, whose mount may be another.
    release(place)?;
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if SFlag::from_bits_truncate(fstat(opened)?.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR {
        std::fs::create_dir(place)?;
    } else {
        std::fs::File::create_new(place)?;
    }
    let source = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    Ok(mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

fn release(place: &Path) -> std::io::Result<()> {
    // What is mounted in the volume itself stays there.
    if mounting::is_mounted(place) {
        let alone = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, place, None::<&str>, alone, None::<&str>)?;
    }
    mounting::unmount_below(place)?;
    let removed = match std::fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => std::fs::remove_dir(place),
        Ok(_) => std::fs::remove_file(place),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts all of a pod's.
///
/// # Errors
/// When something stays mounted.
pub fn remove(pod_dir: &Path) -> std::io::Result<()> {
    let own = pod_dir.join(DIRECTORY);
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten().map(|e| e.path());
    for container in entries(&own) {
        for place in entries(&container) {
            release(&place)?;
        }
    }
    match std::fs::remove_dir_all(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn place(volume: &Path, sub_path: &str) -> Mount {
        Mount { host_path: volume.display().to_string(), sub_path: sub_path.to_owned(), ..Mount::default() }
    }

    #[test]
    fn a_place_that_becomes_a_link_is_refused_or_stays_what_it_was() {
        let root = tempfile::tempdir().expect("a directory");
        let dir = PodDir::new(root.path(), "u").expect("a pod directory");
        let volume = root.path().join("volume");
        std::fs::create_dir_all(volume.join("x")).expect("a directory");
        std::fs::write(volume.join("x/inside"), "").expect("a file");
        std::fs::write(volume.join("file"), "text").expect("a file");
        symlink("x", volume.join("link")).expect("a link");
        symlink("../..", volume.join("out")).expect("a link");
        symlink("/etc", volume.join("etc")).expect("a link");
        let mut mounts = ["x", "file", "link"].map(|sub_path| place(&volume, sub_path));
        let bound = bind(&dir, "c", &mut mounts);
        if !nix::unistd::geteuid().is_root() {
            assert!(bound.is_err_and(|why| why.contains("has to run as root")));
            return;
        }
        bound.expect("bound");
        // The check of the agent and the mount of the runtime are apart: what is made of the name in between does not count.
        std::fs::rename(volume.join("x"), volume.join("away")).expect("renamed");
        symlink("/etc", volume.join("x")).expect("a link");
        let own = dir.path.join(DIRECTORY).join("c");
        for (index, mount) in mounts.iter().enumerate() {
            assert_eq!(mount.host_path, own.join(index.to_string()).display().to_string());
            assert_eq!(mount.sub_path, "");
        }
        assert!(own.join("0/inside").exists() && own.join("2/inside").exists());
        assert_eq!(std::fs::read_to_string(own.join("1")).expect("the file"), "text");
        for sub_path in ["out", "out/x", "etc", "x", "x/passwd"] {
            let why = bind(&dir, "c", &mut [place(&volume, sub_path)]).expect_err(sub_path);
            assert!(why.contains(sub_path), "{why}");
        }
        // Another container of that name, whose place is of another kind.
        bind(&dir, "c", &mut [place(&volume, "file")]).expect("bound again");
        assert_eq!(std::fs::read_to_string(own.join("0")).expect("the file"), "text");
        dir.remove().expect("removed");
        assert!(mounting::below(root.path()).expect("mounts").is_empty());
        assert!(volume.join("away/inside").exists(), "what lies in the volume is not the pod's directory");
    }
}
