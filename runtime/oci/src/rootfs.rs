//! The root filesystem of a container: overlayfs over the image's layers.

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
