//! Namespaces that live by a bind-mounted file, without a process in them.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// The file of the network namespace below a pod's folder.
pub fn network(dir: &Path) -> PathBuf {
    dir.join("net")
}

/// The file of the IPC namespace below a pod's folder.
pub fn ipc(dir: &Path) -> PathBuf {
    dir.join("ipc")
}

/// The file of the UTS namespace (the host name) below a pod's folder.
pub fn uts(dir: &Path) -> PathBuf {
    dir.join("uts")
}

/// Makes namespaces below `dir`: IPC always, network and UTS when the pod has a name of its own. Blocking.
pub fn make(dir: &Path, hostname: Option<&str>) -> io::Result<()> {
    let (dir, hostname) = (dir.to_owned(), hostname.map(str::to_owned));
    // A thread of its own: its namespaces end with it, but for those that are mounted.
    let made = std::thread::spawn(move || -> io::Result<()> {
        let mut flags = CloneFlags::CLONE_NEWIPC;
        let mut files = vec![("ipc", ipc(&dir))];
        if hostname.is_some() {
            flags |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
            files.extend([("net", network(&dir)), ("uts", uts(&dir))]);
        }
        unshare(flags)?;
        if let Some(name) = hostname {
            nix::unistd::sethostname(name)?;
        }
        for (kind, path) in files {
            File::create(&path)?;
            let own = format!("/proc/thread-self/ns/{kind}");
            mount(Some(own.as_str()), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        }
        Ok(())
    });
    made.join().map_err(|_| io::Error::other("the thread that makes namespaces failed"))?
}

/// Removes what [`make`] made; again is fine. Blocking.
pub fn remove(dir: &Path) -> io::Result<()> {
    for path in [network(dir), ipc(dir), uts(dir)] {
        unmount(&path)?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Unmounts a path however often it is mounted on; one that is not there or no mount is fine.
pub fn unmount(path: &Path) -> io::Result<()> {
    for _ in 0..64 {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Does something on a thread that has entered a network namespace. Blocking.
pub fn within<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let file = File::open(netns)?;
    let thread = std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread.join().map_err(|_| io::Error::other("the thread in the network namespace failed"))?
}

/// Whether the namespaces of a pod are there: a reboot takes the mounts and leaves the files.
pub fn exist(dir: &Path) -> bool {
    // A namespace's file lies on nsfs, whose magic number this is.
    const NSFS: i64 = 0x6e73_6673;
    nix::sys::statfs::statfs(&ipc(dir)).is_ok_and(|found| found.filesystem_type().0 == NSFS)
}
