//! How much a node holds on to, in numbers: for what has no name.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{Cluster, SOON, eventually};

/// By kind: how many there are.
pub type Counts = BTreeMap<String, usize>;

/// Connections to other parts of the cluster come and go by themselves.
const DESCRIPTORS_MORE: usize = 6;

fn entries(path: impl AsRef<Path>) -> usize {
    std::fs::read_dir(path).map_or(0, Iterator::count)
}

/// Files and folders below a folder; images and compiled programs are kept for good, logs of the cluster's own processes grow.
fn files(path: &Path) -> usize {
    let kept = ["images", "compiled"];
    let children = std::fs::read_dir(path).into_iter().flatten().flatten();
    children
        .filter(|e| !kept.iter().any(|k| e.file_name() == *k))
        .map(|e| 1 + if e.file_type().is_ok_and(|t| t.is_dir()) { files(&e.path()) } else { 0 })
        .sum()
}

/// Counts descriptors (files, sockets, addresses that are listened on), mounts, processes, and files.
///
/// # Errors
/// When a process of the cluster does not run.
pub fn count(cluster: &Cluster) -> Result<Counts> {
    let folder = cluster.data_dir().canonicalize()?;
    let shown = folder.display().to_string();
    let mut counts = Counts::new();
    // Those of the agent are left out: it keeps its connections to the API for half a minute.
    let runtime = cluster.pid("runtime")?;
    counts.insert("descriptors of the runtime".into(), entries(format!("/proc/{runtime}/fd")));
    for process in ["node", "runtime"] {
        counts.insert(format!("files of {process}"), files(&folder.join(process)));
    }
    let (mut processes, mut hosts) = (0, 0);
    for process in std::fs::read_dir("/proc").context("list /proc")?.flatten() {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains(&shown) {
            processes += 1;
            let host = line.split('\0').nth(1) == Some("wasm-host");
            hosts += if host { entries(process.path().join("fd")) } else { 0 };
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    counts.insert("processes".into(), processes);
    counts.insert("descriptors of hosts".into(), hosts);
    counts.insert("mounts".into(), mounts.lines().filter(|line| line.contains(&shown)).count());
    Ok(counts)
}

/// Waits until no more is held than `before`.
///
/// # Errors
/// What is held on to: how many before, and now.
pub fn settles(cluster: &Cluster, before: &Counts) -> Result<()> {
    eventually("nothing is held on to", SOON, || {
        let more = |kind: &str| if kind.starts_with("descriptors") { DESCRIPTORS_MORE } else { 0 };
        let now = count(cluster)?;
        let grown = now.iter().filter(|(kind, n)| **n > before.get(*kind).unwrap_or(&0) + more(kind));
        let grown: Vec<_> = grown.map(|(kind, n)| (kind, before.get(kind), n)).collect();
        ensure!(grown.is_empty(), "(kind, before, now): {grown:?}");
        Ok(true)
    })
}
