//! Control groups, version 1 and 2: what a container used, and whether it ran out of memory. A container's limits are set
//! by the OCI runtime, those of its pod here.

pub mod pod;

use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start, in nanoseconds.
    pub cpu_nanos: u64,
    /// In bytes, without what the kernel could drop at once.
    pub working_set_bytes: u64,
    pub memory_bytes: u64,
    pub processes: u64,
}

/// Whether this host has the unified hierarchy only.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").is_file()
}

fn folder(controller: &str, group: &str) -> PathBuf {
    let group = group.trim_start_matches('/');
    if unified() { Path::new(ROOT).join(group) } else { Path::new(ROOT).join(controller).join(group) }
}

fn text(controller: &str, group: &str, file: &str) -> io::Result<String> {
    std::fs::read_to_string(folder(controller, group).join(file))
}

fn number(controller: &str, group: &str, file: &str) -> u64 {
    text(controller, group, file).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
}

/// The value of a key in a file of lines `key value`.
fn field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|v| v.trim().parse().ok()).unwrap_or(0)
}

/// How often the kernel has killed a process of the group because its memory was used up.
pub fn oom_kills(group: &str) -> u64 {
    let file = if unified() { "memory.events" } else { "memory.oom_control" };
    field(&text("memory", group, file).unwrap_or_default(), "oom_kill")
}

/// What the group uses; `None` when it is gone.
pub fn usage(group: &str) -> Option<Usage> {
    let stat = text("memory", group, "memory.stat").ok()?;
    let (cpu_nanos, memory_bytes, inactive) = if unified() {
        let cpu = field(&text("cpu", group, "cpu.stat").ok()?, "usage_usec");
        (cpu.saturating_mul(1000), number("memory", group, "memory.current"), field(&stat, "inactive_file"))
    } else {
        let inactive = field(&stat, "total_inactive_file");
        (
            number("cpuacct", group, "cpuacct.usage"),
            number("memory", group, "memory.usage_in_bytes"),
            inactive,
        )
    };
    Some(Usage {
        cpu_nanos,
        memory_bytes,
        working_set_bytes: memory_bytes.saturating_sub(inactive),
        processes: number("pids", group, "pids.current"),
    })
}

/// Kills every process of a group. Its own groups below are left to the OCI runtime. Blocking.
pub fn kill(group: &str) {
    // A process that forks meanwhile may be missed the first time.
    for _ in 0..8 {
        let listed = text("memory", group, "cgroup.procs").unwrap_or_default();
        let pids: Vec<i32> =
            listed.lines().filter_map(|l| l.trim().parse().ok()).filter(|p| *p > 1).collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Removes a group that is empty, in every hierarchy; one that is not there is fine. Blocking.
pub fn remove(group: &str) {
    let group = group.trim_start_matches('/');
    if group.is_empty() {
        return;
    }
    if unified() {
        let _ = std::fs::remove_dir(Path::new(ROOT).join(group));
        return;
    }
    for hierarchy in std::fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let _ = std::fs::remove_dir(hierarchy.path().join(group));
    }
}

/// Whether the groups that limits are set in count huge pages.
pub fn counts_huge_pages() -> bool {
    counts(Path::new(ROOT), "hugetlb")
}

/// In version 1 every controller has its own hierarchy; one that is part of version 2 beside it is out of reach.
fn counts(root: &Path, controller: &str) -> bool {
    match std::fs::read_to_string(root.join("cgroup.controllers")) {
        Ok(list) => list.split_whitespace().any(|name| name == controller),
        Err(_) => root.join(controller).is_dir(),
    }
}

/// Whether swap is counted, which a kernel may do without; told by a group that is there, or by the one above it.
pub fn counts_swap(group: &str) -> bool {
    counts_swap_below(Path::new(ROOT), group)
}

fn counts_swap_below(root: &Path, group: &str) -> bool {
    let group = Path::new(group.trim_start_matches('/'));
    let mut groups = group.ancestors();
    match root.join("cgroup.controllers").is_file() {
        // The root of version 2 has no such file.
        true => groups.any(|group| root.join(group).join("memory.swap.max").is_file()),
        false => root.join("memory/memory.memsw.limit_in_bytes").is_file(),
    }
}

/// Why limits cannot be set here, if so.
pub fn missing() -> Option<String> {
    if unified() {
        return None;
    }
    let needed = ["memory", "cpu", "pids", "devices"];
    let missing: Vec<_> = needed.into_iter().filter(|c| !Path::new(ROOT).join(c).is_dir()).collect();
    (!missing.is_empty())
        .then(|| format!("the control groups {} are not mounted below {ROOT}", missing.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_counted_where_their_controller_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let counted = || counts(dir.path(), "hugetlb");
        assert!(!counted());
        // Version 2 beside version 1.
        std::fs::create_dir(dir.path().join("unified")).expect("a folder");
        std::fs::write(dir.path().join("unified/cgroup.controllers"), "hugetlb\n").expect("a file");
        assert!(!counted());
        std::fs::create_dir(dir.path().join("hugetlb")).expect("a folder");
        assert!(counted());
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory\n").expect("a file");
        assert!(!counted());
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu hugetlb\n").expect("a file");
        assert!(counted());
    }

    #[test]
    fn swap_is_counted_where_the_kernel_does() {
        let dir = tempfile::tempdir().expect("a directory");
        let counted = || counts_swap_below(dir.path(), "/coracle/pod");
        assert!(!counted());
        std::fs::create_dir(dir.path().join("memory")).expect("a folder");
        std::fs::write(dir.path().join("memory/memory.memsw.limit_in_bytes"), "0").expect("a file");
        assert!(counted());
        std::fs::write(dir.path().join("cgroup.controllers"), "memory").expect("a file");
        assert!(!counted());
        std::fs::create_dir(dir.path().join("coracle")).expect("a folder");
        std::fs::write(dir.path().join("coracle/memory.swap.max"), "max").expect("a file");
        assert!(counted());
    }

    #[test]
    fn keys_are_whole_words() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(field(text, "oom_kill"), 3);
        assert_eq!(field(text, "absent"), 0);
    }
}
