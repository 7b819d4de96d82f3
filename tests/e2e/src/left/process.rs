//! Processes as the kernel shows them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::sockets::Socket;

/// A process whose command line names a directory.
pub struct Process {
    pid: i32,
    line: String,
    /// What is looked for in texts.
    dir: String,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words: Vec<_> = self.line.split('\0').skip(1).take(1).collect();
        write!(f, "process {} ({})", self.pid, words.join(" "))
    }
}

/// All that name this directory: those of a cluster have theirs among their arguments.
pub fn naming(dir: &Path) -> Vec<Process> {
    let dir = dir.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains(&dir) {
            found.push(Process { pid, line, dir: dir.clone() });
        }
    }
    found
}

impl Process {
    /// Its arguments, for people.
    pub fn shown(&self) -> String {
        format!("process {}: {}", self.pid, self.line.replace('\0', " "))
    }

    /// Whether its command line names this directory too.
    pub fn names(&self, dir: &Path) -> bool {
        self.line.contains(&*dir.to_string_lossy())
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `node`, `runtime` or `wasm-host` of the program under test.
    pub fn program(&self) -> Option<&str> {
        self.line.split('\0').nth(1).filter(|word| ["node", "runtime", "wasm-host"].contains(word))
    }

    /// What its descriptors are.
    pub fn open(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        entries.filter_map(|e| std::fs::read_link(e.path()).ok()).collect()
    }

    /// Paths in the directory that it names, has open or has mapped, each with which of it.
    pub fn paths(&self) -> Vec<(&'static str, PathBuf)> {
        let from = |text: &str| {
            let path = text.get(text.find(&self.dir)?..)?;
            Some(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)))
        };
        let mut all: Vec<_> = self.line.split('\0').filter_map(from).map(|path| ("argument", path)).collect();
        let open = self.open();
        all.extend(open.iter().filter_map(|path| from(path.to_str()?)).map(|path| ("open file", path)));
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.pid)).unwrap_or_default();
        let mapped: BTreeSet<_> = maps.lines().filter_map(from).collect();
        all.extend(mapped.into_iter().map(|path| ("map", path)));
        all
    }

    /// Those of these sockets that it holds.
    pub fn sockets(&self, all: &[Socket]) -> Vec<Socket> {
        let inode =
            |link: &PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok();
        let own: BTreeSet<u64> = self.open().iter().filter_map(inode).collect();
        all.iter().filter(|socket| own.contains(&socket.inode)).copied().collect()
    }
}
