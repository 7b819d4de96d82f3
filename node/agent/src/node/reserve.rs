//! What is reserved on the node is kept from all Linux pods together, by the control group that they are in
//! (`--enforce-node-allocatable=pods`).

use std::io;
use std::path::{Path, PathBuf};

use super::object;
use crate::context::Context;
use crate::tuning::Tuning;

const ROOT: &str = "/sys/fs/cgroup";
/// Shares of a processor.
const SHARES: i64 = 1024;

/// A file of the group (controller of version 1, file, value).
type Setting = (&'static str, &'static str, String);

/// Pure: the limits of all pods together, of this many millicores and bytes.
fn settings([cpu, memory]: [i64; 2], unified: bool) -> [Setting; 2] {
    let shares = (cpu.saturating_mul(SHARES) / 1000).clamp(2, 262_144);
    match unified {
        // 100 is the weight of 1024 shares; among its neighbours the group counts by its processors.
        true => [
            ("cpu", "cpu.weight", (shares.saturating_mul(100) / SHARES).clamp(1, 10_000).to_string()),
            ("memory", "memory.max", memory.to_string()),
        ],
        false => [
            ("cpu", "cpu.shares", shares.to_string()),
            ("memory", "memory.limit_in_bytes", memory.to_string()),
        ],
    }
}

/// Pure: what is left of a machine's millicores and memory when the reservations are taken off. What has to stay free for
/// evictions is not: pods are evicted before they are killed.
fn left(cpu: i64, memory: i64, tuning: &Tuning) -> [i64; 2] {
    let mut tuning = tuning.clone();
    tuning.eviction.thresholds.clear();
    let [cpu, memory, _] = object::allocatable([cpu, memory, 0], &tuning);
    [cpu, memory]
}

/// Limits the group of all pods, which the runtime makes with its first Linux pod, or this does.
///
/// # Errors
/// Which file the kernel refuses, such as less memory than pods have already.
pub fn enforce(context: &Context) -> io::Result<()> {
    limit(Path::new(ROOT), left(context.cpu_milli, context.machine_memory, &context.tuning))
}

/// Takes the limits away that an agent before set, where the group is there.
///
/// # Errors
/// Which file the kernel refuses.
pub fn lift() -> io::Result<()> {
    unlimit(Path::new(ROOT))
}

/// Removes the group of all pods, where none is left in it.
///
/// # Errors
/// Why it stays although it is empty.
pub fn release() -> io::Result<()> {
    remove(Path::new(ROOT))
}

fn group() -> &'static str {
    coracle_cri_api::PODS_GROUP.trim_start_matches('/')
}

fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").is_file()
}

/// The group's folder for a controller.
fn folder(root: &Path, controller: &str) -> PathBuf {
    if is_unified(root) { root.join(group()) } else { root.join(controller).join(group()) }
}

fn named(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

fn limit(root: &Path, left: [i64; 2]) -> io::Result<()> {
    let unified = is_unified(root);
    for (controller, file, value) in settings(left, unified) {
        let folder = folder(root, controller);
        std::fs::create_dir_all(&folder).map_err(|e| named(&folder, &e))?;
        if unified {
            // Where it cannot be handed down, the file is missing.
            let _ = std::fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        }
        let file = folder.join(file);
        std::fs::write(&file, value).map_err(|e| named(&file, &e))?;
    }
    Ok(())
}

fn unlimit(root: &Path) -> io::Result<()> {
    let unlimited = match is_unified(root) {
        true => [("cpu", "cpu.weight", "100"), ("memory", "memory.max", "max")],
        false => [("cpu", "cpu.shares", "1024"), ("memory", "memory.limit_in_bytes", "-1")],
    };
    for (controller, file, value) in unlimited {
        let file = folder(root, controller).join(file);
        if file.is_file() {
            std::fs::write(&file, value).map_err(|e| named(&file, &e))?;
        }
    }
    Ok(())
}

/// With version 1, in every hierarchy.
fn remove(root: &Path) -> io::Result<()> {
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let all = hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(group()));
    for folder in all.filter(|folder| folder.is_dir()) {
        let kept = |e: &io::Error| {
            use io::ErrorKind::{
                DirectoryNotEmpty, NotFound, PermissionDenied, ReadOnlyFilesystem, ResourceBusy,
            };
            // Pods are left in it, or it is not this node's: who may not remove it has not made it.
            matches!(
                e.kind(),
                DirectoryNotEmpty | NotFound | PermissionDenied | ReadOnlyFilesystem | ResourceBusy
            )
        };
        match std::fs::remove_dir(&folder) {
            Err(error) if !kept(&error) => return Err(named(&folder, &error)),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::Reserved;

    #[test]
    fn what_is_reserved_is_kept_from_all_pods_together() {
        let reserved = |text: &str| Reserved::parse(text).expect("amounts");
        let tuning = Tuning { kube_reserved: reserved("cpu=500m,memory=1Gi"), ..Tuning::default() };
        let left = left(4000, 8 << 30, &tuning);
        assert_eq!(left, [3500, 7 << 30]);
        let dir = tempfile::tempdir().expect("a directory");
        limit(dir.path(), left).expect("files");
        let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).expect("a file");
        assert_eq!(
            (read("cpu/coracle/cpu.shares"), read("memory/coracle/memory.limit_in_bytes")),
            ("3584".into(), (7_i64 << 30).to_string())
        );
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory").expect("a file");
        limit(dir.path(), left).expect("files");
        assert_eq!(
            (read("coracle/cpu.weight"), read("coracle/memory.max")),
            ("350".into(), (7_i64 << 30).to_string())
        );
    }

    #[test]
    fn limits_are_taken_away_and_an_empty_group_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let read = |file: &str| std::fs::read_to_string(dir.path().join(file)).ok();
        unlimit(dir.path()).expect("nothing to do");
        assert!(!dir.path().join("memory").exists(), "no group is made for it");
        limit(dir.path(), [3500, 7 << 30]).expect("files");
        unlimit(dir.path()).expect("files");
        assert_eq!(read("memory/coracle/memory.limit_in_bytes").as_deref(), Some("-1"));
        assert_eq!(read("cpu/coracle/cpu.shares").as_deref(), Some("1024"));
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory").expect("a file");
        limit(dir.path(), [3500, 7 << 30]).expect("files");
        unlimit(dir.path()).expect("files");
        assert_eq!(read("coracle/memory.max").as_deref(), Some("max"));
        // A pod's group is in it.
        remove(dir.path()).expect("left alone");
        assert!(dir.path().join("coracle").exists());
        for group in ["coracle", "memory/coracle", "cpu/coracle"] {
            let group = dir.path().join(group);
            std::fs::remove_dir_all(&group).and_then(|()| std::fs::create_dir(&group)).expect("emptied");
        }
        remove(dir.path()).expect("removed");
        assert!(
            ["coracle", "memory/coracle", "cpu/coracle"].iter().all(|group| !dir.path().join(group).exists())
        );
    }
}
