//! Volumes of a pod's `fsGroup`: what is in them belongs to the group, which may read it, and write where the volume is not
//! written from objects. Everything is reached through open directories: who shares a volume may put links anywhere in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, PermissionsExt};
use k8s_openapi::api::core::v1::Pod;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, fchownat};

/// A group that volumes are given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub id: u32,
    /// It may only read.
    pub reads: bool,
}

impl Group {
    /// The mode of a file, as the kubelet has it.
    pub fn file(self, mode: u32) -> u32 {
        mode | if self.reads { 0o440 } else { 0o660 }
    }

    /// The mode of a directory: what is made in it is the group's too.
    fn directory(self, mode: u32) -> u32 {
        self.file(mode) | 0o2110
    }
}

/// The pod's `fsGroup`. Only root can give, and only root's pods have other users.
pub fn group(pod: &Pod, reads: bool) -> Option<Group> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let id = context.and_then(|c| c.fs_group).and_then(|g| u32::try_from(g).ok());
    id.filter(|_| nix::unistd::geteuid().is_root()).map(|id| Group { id, reads })
}

/// Gives a volume and all that is in it to the pod's `fsGroup`; with `fsGroupChangePolicy` `OnRootMismatch` not where the
/// volume itself is as it should be.
pub(crate) fn own(pod: &Pod, path: &Path) -> Result<(), String> {
    let Some(group) = group(pod, false) else { return Ok(()) };
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let policy = context.and_then(|c| c.fs_group_change_policy.as_deref());
    let given = || -> io::Result<()> {
        let dir = Dir::open_ambient_dir(path, ambient_authority())?;
        let found = dir.dir_metadata()?;
        let mode = found.permissions().mode() & 0o7777;
        let fits = found.gid() == group.id && group.directory(mode) == mode;
        if fits && policy == Some("OnRootMismatch") { Ok(()) } else { give(&dir, group) }
    };
    given().map_err(|e| format!("give {} to group {}: {e}", path.display(), group.id))
}

/// Gives a directory and all that is in it; itself last, so that one that is given is given as a whole.
///
/// # Errors
/// What could not be given.
pub fn give(dir: &Dir, group: Group) -> io::Result<()> {
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let is_root = path.as_os_str().is_empty();
        let below = if is_root { dir.try_clone() } else { dir.open_dir(&path) };
        let Some(below) = or_gone(below)? else { continue };
        if !is_root {
            give_directory(&below, group)?;
        }
        give_entries(&below, &path, group, &mut left)?;
    }
    give_directory(dir, group)
}

/// Gives the files of a directory, which lies at `path`, and says which directories are left.
fn give_entries(dir: &Dir, path: &Path, group: Group, left: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in dir.entries()? {
        let entry = entry?;
        match or_gone(entry.file_type())? {
            Some(kind) if kind.is_dir() => left.push(path.join(entry.file_name())),
            Some(_) => drop(or_gone(give_file(dir, Path::new(&entry.file_name()), group))?),
            None => {}
        }
    }
    Ok(())
}

/// Whoever shares the volume goes on working there.
fn or_gone<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

/// Gives a directory alone.
///
/// # Errors
/// Why it cannot be given.
pub fn give_directory(dir: &Dir, group: Group) -> io::Result<()> {
    let mode = dir.dir_metadata()?.permissions().mode() & 0o7777;
    set(dir, group.id, Some(group.directory(mode)))
}

fn give_file(dir: &Dir, name: &Path, group: Group) -> io::Result<()> {
    // A link is not followed, and a pipe or a device is not touched.
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(dir.as_fd(), name, flags, Mode::empty())?;
    let found = fstat(&file)?.st_mode;
    let is_link = found & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits();
    set(&file, group.id, (!is_link).then(|| group.file(found & 0o7777)))
}

/// What is open may be open for nothing but this.
fn set(opened: &(impl AsFd + AsRawFd), group: u32, mode: Option<u32>) -> io::Result<()> {
    fchownat(opened.as_fd(), "", None, Some(Gid::from_raw(group)), AtFlags::AT_EMPTY_PATH)?;
    match mode {
        Some(mode) => std::fs::set_permissions(
            format!("/proc/self/fd/{}", opened.as_raw_fd()),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        ),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    #[test]
    fn what_is_given_is_the_groups_and_links_lead_nowhere() {
        if !nix::unistd::geteuid().is_root() {
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"metadata": {}, "spec": {"containers": [],
                "securityContext": {"fsGroup": 7}}}))
                .expect("a Pod");
            assert_eq!(group(&pod, false), None);
            return;
        }
        let root = tempfile::tempdir().expect("a directory");
        let volume = root.path().join("volume");
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        };
        std::fs::create_dir_all(volume.join("a/b")).expect("directories");
        for name in ["out", "volume/a/file"] {
            std::fs::write(root.path().join(name), "").expect("a file");
            set(&root.path().join(name), 0o400).expect("a mode");
        }
        symlink(root.path().join("out"), volume.join("link")).expect("a link");
        symlink(root.path(), volume.join("a/up")).expect("a link");
        let dir = Dir::open_ambient_dir(&volume, ambient_authority()).expect("open");
        give(&dir, Group { id: 4242, reads: false }).expect("given");
        let seen = |name: &str| {
            let found = std::fs::symlink_metadata(root.path().join(name)).expect(name);
            (found.gid(), found.mode() & 0o7777)
        };
        assert_eq!(seen("volume"), (4242, 0o2775));
        assert_eq!(seen("volume/a/b"), (4242, 0o2775));
        assert_eq!(seen("volume/a/file"), (4242, 0o660));
        assert_eq!(seen("volume/link").0, 4242);
        assert_ne!(seen("out").0, 4242);
        assert_eq!(seen("out").1, 0o400);
        assert_ne!(seen("").0, 4242);
        assert_eq!(Group { id: 1, reads: true }.file(0o400), 0o440);
    }

    #[test]
    fn a_volume_that_is_not_given_as_a_whole_is_not_given() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let volume = tempfile::tempdir().expect("a directory");
        let root = Dir::open_ambient_dir(volume.path(), ambient_authority()).expect("open");
        let nest = |from: &Dir, name: &str, times: u32| {
            let mut dir = from.try_clone().expect("the same");
            for _ in 0..times {
                dir.create_dir(name).expect("a directory");
                dir = dir.open_dir(name).expect("open");
            }
            dir
        };
        let group = Group { id: 4242, reads: false };
        let deepest = nest(&root, "a", 100);
        give(&root, group).expect("given");
        assert_eq!(deepest.dir_metadata().expect("it").gid(), 4242, "however deep it lies");
        let volume = tempfile::tempdir().expect("a directory");
        let root = Dir::open_ambient_dir(volume.path(), ambient_authority()).expect("open");
        // Longer than any path that the kernel takes.
        nest(&root, &"x".repeat(250), 20);
        give(&root, group).expect_err("out of reach");
        assert_ne!(root.dir_metadata().expect("it").gid(), 4242, "it is tried again");
    }
}
