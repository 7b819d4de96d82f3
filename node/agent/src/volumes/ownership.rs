//! Volumes of a pod's `fsGroup`: what is in them belongs to the group, which may read it, and write where the volume is not
//! written from objects. Everything is reached through open directories: who shares a volume may put links anywhere in it.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use cap_std::ambient_authority;
use cap_std::fs::{Dir, MetadataExt, PermissionsExt};
use k8s_openapi::api::core::v1::Pod;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{Gid, fchownat};

const MAX_DEPTH: u32 = 64;
const MAX_ENTRIES: usize = 100_000;

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

/// Gives a directory and all that is in it.
///
/// # Errors
/// What could not be given.
pub fn give(dir: &Dir, group: Group) -> io::Result<()> {
    give_to(dir, group, 0)
}

fn give_to(dir: &Dir, group: Group, depth: u32) -> io::Result<()> {
    give_directory(dir, group)?;
    if depth >= MAX_DEPTH {
        return Ok(());
    }
    for entry in dir.entries()?.take(MAX_ENTRIES) {
        let entry = entry?;
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let given = match entry.file_type() {
            Ok(kind) if kind.is_dir() => entry.open_dir().and_then(|below| give_to(&below, group, depth + 1)),
            Ok(_) => give_file(dir, Path::new(&entry.file_name()), group),
            Err(error) => Err(error),
        };
        // Whoever shares the volume goes on working there.
        given.or_else(|error| if gone(&error) { Ok(()) } else { Err(error) })?;
    }
    Ok(())
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
}
