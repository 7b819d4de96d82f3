//! The root filesystem of a container: overlayfs over the image's layers.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use crate::namespaces::unmount;

/// What fits into the options of one mount call, with some room.
const MAX_OPTIONS: usize = 4000;

/// Mounts `dir/rootfs` over these layers, lowest first; changes go to `dir/upper`. Blocking.
pub fn mount_overlay(dir: &Path, layers: &[PathBuf]) -> io::Result<PathBuf> {
    let (target, upper, work) = (dir.join("rootfs"), dir.join("upper"), dir.join("work"));
    for path in [&target, &upper, &work] {
        std::fs::create_dir_all(path)?;
    }
    let Some(lowest) = layers.first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image has no layers"));
    };
    // The root of the container gets mode and owner of the image's own root.
    copy_owner(layers.last().unwrap_or(lowest), &upper)?;
    let lower: Vec<String> = layers.iter().rev().map(|l| l.display().to_string()).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
    let plain = !lower.iter().any(|l| l.contains([',', ':', '\\']));
    if plain && options.len() < MAX_OPTIONS {
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
    } else {
        mount_in_steps(&target, layers, &upper, &work)?;
    }
    Ok(target)
}

/// By the newer calls, which take a layer at a time (Linux 6.5).
fn mount_in_steps(target: &Path, layers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<()> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for layer in layers.iter().rev() {
        rustix::mount::fsconfig_set_string(&overlay, "lowerdir+", layer)?;
    }
    rustix::mount::fsconfig_set_string(&overlay, "upperdir", upper)?;
    rustix::mount::fsconfig_set_string(&overlay, "workdir", work)?;
    rustix::mount::fsconfig_create(&overlay)?;
    let mounted = rustix::mount::fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&mounted, "", rustix::fs::CWD, target, flags).map_err(Into::into)
}

fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(found.uid()), Some(found.gid()))?;
    std::fs::set_permissions(to, found.permissions())
}

/// Unmounts what [`mount_overlay`] mounted; again is fine. Blocking.
pub fn unmount_overlay(dir: &Path) -> io::Result<()> {
    unmount(&dir.join("rootfs"))
}

/// Files that are counted of one container: more is more than any limit is meant for.
const MAX_FILES: u64 = 1_000_000;
/// Folders in folders that are counted.
const MAX_DEPTH: u32 = 64;

/// What a container has written to its own files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// On the disk.
    pub bytes: u64,
    /// Files and folders, the root among them.
    pub files: u64,
}

/// Counts what is in a folder of changes, within bounds: links are not followed, a file of several names counts once.
/// Blocking.
pub fn written(upper: &Path) -> Written {
    let mut count = Written::default();
    if let Ok(root) = std::fs::symlink_metadata(upper) {
        use std::os::unix::fs::MetadataExt as _;
        (count.bytes, count.files) = (root.blocks().saturating_mul(512), 1);
        add(upper, 0, &mut count, &mut BTreeSet::new());
    }
    count
}

fn add(folder: &Path, depth: u32, count: &mut Written, seen: &mut BTreeSet<u64>) {
    use std::os::unix::fs::MetadataExt as _;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if count.files >= MAX_FILES || depth >= MAX_DEPTH {
            return;
        }
        // What goes while it is counted does not count.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() || metadata.nlink() == 1 || seen.insert(metadata.ino()) {
            count.files += 1;
            count.bytes = count.bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
        if metadata.is_dir() {
            add(&entry.path(), depth + 1, count, seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_counted_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let upper = dir.path().join("upper");
        std::fs::create_dir_all(upper.join("var/log")).expect("folders");
        let empty = written(&upper);
        assert_eq!(empty.files, 3);
        std::fs::write(upper.join("var/log/a"), vec![1; 1 << 20]).expect("a file");
        std::fs::hard_link(upper.join("var/log/a"), upper.join("var/b")).expect("another name");
        std::os::unix::fs::symlink("/", upper.join("link")).expect("a link");
        let full = written(&upper);
        assert_eq!(full.files, 5);
        assert!((1 << 20..2 << 20).contains(&(full.bytes - empty.bytes)), "{full:?} {empty:?}");
        assert_eq!(written(&dir.path().join("gone")), Written::default());
    }
}
