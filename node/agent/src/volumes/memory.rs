//! Memory-backed volumes where the agent may not mount: directories of the machine's own `/dev/shm`.

use std::path::{Path, PathBuf};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use sha2::{Digest, Sha256};

const SHARED: &str = "/dev/shm";

/// Where the volumes of one pod lie; `None` where this machine has no such place, or the agent mounts.
pub fn directory(root: &Path, uid: &str) -> Option<PathBuf> {
    let usable = || statfs(SHARED).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    if nix::unistd::geteuid().is_root() || !usable() {
        return None;
    }
    Some(place(root, uid))
}

/// Every agent of a machine has a directory of its own.
fn place(root: &Path, uid: &str) -> PathBuf {
    let hash = hex::encode(Sha256::digest(root.as_os_str().as_encoded_bytes()));
    let name = format!("coracle-{}-{}", nix::unistd::geteuid(), hash.get(..12).unwrap_or_default());
    Path::new(SHARED).join(name).join(uid)
}

/// Makes a directory that the pod may write, below one that nobody else may enter.
///
/// # Errors
/// When it cannot be made, or another user made it first.
pub fn make(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
    let own = path.parent().and_then(Path::parent).unwrap_or(path);
    match std::fs::DirBuilder::new().mode(0o700).create(own) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(own)?;
    if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o077 != 0 {
        return Err(std::io::Error::other(format!("{} is not this agent's own", own.display())));
    }
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777))
}

/// Removes what a pod has there, and the agent's directory after the last pod.
///
/// # Errors
/// When something stays.
pub fn remove(root: &Path, uid: &str) -> std::io::Result<()> {
    let own = place(root, uid);
    match std::fs::remove_dir_all(&own) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Others' pods may be there.
    let _ = own.parent().map(std::fs::remove_dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_for_its_user_and_removed_with_its_pod() {
        let root = tempfile::tempdir().expect("a directory");
        let volume = place(root.path(), "u").join("v");
        make(&volume).expect("made");
        make(&volume).expect("made again");
        std::fs::write(volume.join("file"), "x").expect("written");
        assert_eq!(statfs(&volume).expect("a filesystem").filesystem_type(), TMPFS_MAGIC);
        remove(root.path(), "u").expect("removed");
        remove(root.path(), "u").expect("nothing is left to remove");
        assert!(!volume.parent().and_then(Path::parent).expect("a parent").exists());
    }
}
