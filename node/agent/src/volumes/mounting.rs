//! Mounts of this node's kernel: NFS shares and memory-backed directories. What is mounted below a pod is unmounted
//! before the pod's directory is removed: its data is not the pod's to delete.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::NFSVolumeSource;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::ownership::Group;

/// Mount points at or below a directory, the deepest first.
pub fn below(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|text| PathBuf::from(unescaped(text)))
        .filter(|path| path.starts_with(directory))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// The kernel writes some characters as `\ooo`.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Unmounts everything at or below a directory.
///
/// # Errors
/// When something stays mounted: nothing may be deleted then.
pub fn unmount_below(directory: &Path) -> std::io::Result<()> {
    for path in below(directory)? {
        umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|e| std::io::Error::other(format!("unmount {}: {e}", path.display())))?;
    }
    match below(directory)?.first() {
        Some(left) => Err(std::io::Error::other(format!("{} is still mounted", left.display()))),
        None => Ok(()),
    }
}

/// Whether something is mounted at a path.
pub fn is_mounted(path: &Path) -> bool {
    below(path).is_ok_and(|mounts| mounts.iter().any(|m| m == path))
}

/// Whether this kernel knows a kind of filesystem, or may load it.
fn knows(kind: &str) -> bool {
    let table = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    table.lines().any(|line| line.split_whitespace().last() == Some(kind))
}

/// Mounts an NFS share at a directory, if it is not mounted yet.
///
/// # Errors
/// Why it cannot be.
pub fn nfs(share: &NFSVolumeSource, options: &[String], target: &Path) -> Result<(), String> {
    if is_mounted(target) {
        return Ok(());
    }
    let from = format!("{}:{}", share.server, share.path);
    let failed = |why: &dyn std::fmt::Display| format!("mount NFS {from}: {why}");
    let address = (share.server.as_str(), 2049).to_socket_addrs();
    let address = address.map_err(|e| failed(&format!("resolve {}: {e}", share.server)))?.next();
    let address = address.ok_or_else(|| failed(&"the server has no address"))?;
    // A kernel that has NFS as a module knows it after the first try only.
    let mut flags = MsFlags::empty();
    flags.set(MsFlags::MS_RDONLY, share.read_only == Some(true));
    let mut data = format!("addr={},vers=4.2", address.ip());
    for option in options.iter().filter(|o| !o.is_empty()) {
        data = format!("{data},{option}");
    }
    match mount(Some(from.as_str()), target, Some("nfs4"), flags, Some(data.as_str())) {
        Ok(()) => Ok(()),
        Err(nix::Error::ENODEV) => Err(failed(&"this kernel has no NFS client (nfs4)")),
        Err(nix::Error::EPERM) if !knows("nfs4") => {
            Err(failed(&"this kernel has no NFS client (nfs4), and the node agent may not mount"))
        }
        Err(nix::Error::EPERM) => Err(failed(&"the node agent may not mount: it has to run as root")),
        Err(error) => Err(failed(&error)),
    }
}

/// The mode of what any user of a pod may write to, and its group's number: known to the kernel with the mount itself.
fn open_to(group: Option<Group>) -> String {
    group.map_or_else(|| "mode=0777".to_owned(), |group| format!("mode=2777,gid={}", group.id))
}

/// Mounts memory of a group at a directory, if it is not mounted yet, which is answered; at most so many bytes.
///
/// # Errors
/// Why it cannot be.
pub fn memory(target: &Path, limit: Option<u64>, group: Option<Group>) -> Result<bool, String> {
    if is_mounted(target) {
        return Ok(false);
    }
    let size = limit.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let data = format!("{}{size}", open_to(group));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(data.as_str()))
        .map_err(|e| format!("mount memory at {}: {e}", target.display()))?;
    Ok(true)
}

/// Mounts huge pages of so many bytes each, of a group, at a directory, if they are not mounted yet, which is answered.
///
/// # Errors
/// Why they cannot be.
pub fn huge_pages(target: &Path, page_size: u64, group: Option<Group>) -> Result<bool, String> {
    const KIND: &str = "hugetlbfs";
    if is_mounted(target) {
        return Ok(false);
    }
    let data = format!("pagesize={page_size},{}", open_to(group));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let why = match mount(Some("nodev"), target, Some(KIND), flags, Some(data.as_str())) {
        Ok(()) => return Ok(true),
        Err(nix::Error::ENODEV) => "this kernel has no huge pages (hugetlbfs)".to_owned(),
        Err(nix::Error::EPERM) => "the node agent may not mount: it has to run as root".to_owned(),
        Err(nix::Error::EINVAL) => format!("this kernel has no huge pages of {page_size} bytes"),
        Err(error) => error.to_string(),
    };
    Err(format!("mount huge pages at {}: {why}", target.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_cannot_be_mounted_says_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let share = NFSVolumeSource { server: "127.0.0.1".into(), path: "/none".into(), read_only: None };
        let why = nfs(&share, &["soft".into(), "timeo=1".into(), "retrans=0".into()], dir.path());
        let why = why.expect_err("no server listens");
        assert!(why.starts_with("mount NFS 127.0.0.1:/none: "), "{why}");
        if !knows("nfs4") {
            assert!(why.contains("no NFS client"), "{why}");
        }
    }

    #[test]
    fn huge_pages_are_mounted_or_it_is_said_why_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let made = huge_pages(dir.path(), 2 << 20, None);
        if !nix::unistd::geteuid().is_root() || !knows("hugetlbfs") {
            let why = made.expect_err("not here");
            assert!(why.contains("has to run as root") || why.contains("no huge pages"), "{why}");
            return;
        }
        assert_eq!(made, Ok(true));
        assert_eq!(huge_pages(dir.path(), 2 << 20, None), Ok(false), "once");
        let mode = std::os::unix::fs::PermissionsExt::mode(&dir.path().metadata().expect("it").permissions());
        assert_eq!(mode & 0o777, 0o777);
        let kind = nix::sys::statfs::statfs(dir.path()).expect("a filesystem").filesystem_type();
        assert_eq!(kind, nix::sys::statfs::HUGETLBFS_MAGIC);
        unmount_below(dir.path()).expect("unmounted");
        let why = huge_pages(dir.path(), 12345, None).expect_err("no such pages");
        assert!(why.contains("has no huge pages of 12345 bytes"), "{why}");
    }

    #[test]
    fn what_is_not_mounted_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        unmount_below(dir.path()).expect("nothing to do");
        assert!(!is_mounted(dir.path()) && is_mounted(Path::new("/proc")));
        assert_eq!(unescaped("/a\\040b"), "/a b");
    }
}
