//! What /proc tells of the processes under test: CPU time, memory, and which ones belong to a cluster.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// Resident memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub rss: u64,
    /// Pages that several processes share count in part.
    pub pss: u64,
}

/// A process of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Its subcommand: `up`, `server`, `node`, `runtime`, `wasm-host`.
    pub name: String,
}

/// User and system time of a process so far, to a scheduler tick (10 ms).
pub fn cpu(pid: i32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let ticks = cpu_ticks(&text).with_context(|| format!("{path} has no CPU times: {text}"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.filter(|ticks| *ticks > 0).unwrap_or(100);
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// `utime + stime` of a line of /proc/PID/stat (proc_pid_stat(5), fields 14 and 15). The second field, the name in
/// parentheses, may hold spaces and parentheses itself.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    user.checked_add(system)
}

pub fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    parse_rollup(&text).with_context(|| format!("{path} has no Rss or Pss"))
}

fn parse_rollup(text: &str) -> Option<Memory> {
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(Memory { rss: bytes("Rss:")?, pss: bytes("Pss:")? })
}

/// Every running `coracle` process whose working directory is `folder`, or that was told of a path in it (a wasm host works
/// in the root directory), sorted by name.
pub fn of_cluster(folder: &Path) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list /proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended since. The link, not the first word: a supervisor may call its children as it likes.
        let Ok(program) = std::fs::read_link(entry.path().join("exe")) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let told = || {
            line.split(|byte| *byte == 0).any(|word| Path::new(OsStr::from_bytes(word)).starts_with(folder))
        };
        let here = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder) || told();
        if let Some(name) = subcommand(&program, &line).filter(|_| here) {
            found.push(Process { pid, name });
        }
    }
    found.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
    Ok(found)
}

/// The first argument of a command line (NUL after each word) of `coracle`.
fn subcommand(program: &Path, cmdline: &[u8]) -> Option<String> {
    if program.file_name()? != "coracle" {
        return None;
    }
    let name = std::str::from_utf8(cmdline.split(|byte| *byte == 0).nth(1)?).ok()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// One line about what the figures depend on: cores, kernel, the file system of the data directory, the binary.
pub fn machine(binary: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let folder = std::env::temp_dir();
    let kind = nix::sys::statfs::statfs(&folder).map(|found| found.filesystem_type());
    let memory = matches!(kind, Ok(nix::sys::statfs::TMPFS_MAGIC));
    let disk = if memory { " (in memory: nothing is durable; set TMPDIR)" } else { "" };
    format!(
        "{cores} cores shared by client and server, Linux {}, data in {}{disk}, measuring {binary}",
        kernel.trim(),
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let rest =
            "S 1 10 10 0 -1 4194560 1000 0 3 0 150 27 9 8 20 0 30 0 5000 1000000 200 18446744073709551615";
        for (name, expected) in [("coracle", Some(177)), ("a (b) c) 9 9 9 9", Some(177))] {
            assert_eq!(cpu_ticks(&format!("42 ({name}) {rest}\n")), expected);
        }
        for broken in ["", "42 (x", "42 (x) S 1 2", "42 (x) S 1 10 10 0 -1 4194560 1000 0 3 0 a b"] {
            assert_eq!(cpu_ticks(broken), None, "{broken}");
        }
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = "55d0a0000000-7ffd8b9ff000 ---p 00000000 00:00 0    [rollup]\n\
            Rss:               12340 kB\nPss:                8000 kB\nPss_Anon:           1000 kB\n";
        assert_eq!(parse_rollup(text), Some(Memory { rss: 12340 * 1024, pss: 8000 * 1024 }));
        assert_eq!(parse_rollup("Rss: 1 kB\n"), None);
        assert_eq!(parse_rollup("Rss: x kB\nPss: 1 kB\n"), None);
    }

    #[test]
    fn processes_are_told_by_their_program_and_subcommand() {
        for (program, line, expected) in [
            ("/one/coracle", &b"coracle\0server\0--data-dir\0x\0"[..], Some("server")),
            ("/one/coracle", b"coracle\0", None),
            ("/one/kubectl", b"/one/coracle\0server\0", None),
            ("/one/coracle", b"", None),
        ] {
            assert_eq!(subcommand(Path::new(program), line).as_deref(), expected);
        }
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(cpu(pid).is_ok());
        let memory = memory(pid).unwrap();
        assert!(memory.rss >= memory.pss && memory.pss > 0);
    }
}
