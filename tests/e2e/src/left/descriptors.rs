//! Descriptors that have no name: they are counted by kind, beside how many there were when the node had just started.

use std::collections::{BTreeMap, BTreeSet};

use super::process::Process;
use super::sockets::Socket;

/// How many there are, by the program and the kind.
pub type Counts = BTreeMap<(String, String), usize>;

/// More of a kind than at the start, for what a process does by itself.
const MORE: usize = 8;
/// More of a kind for each sandbox and container that exists.
const OF_EACH: usize = 6;

/// Counts those of the agent, the runtime and the hosts. Files and what has an address are passed over: these have names.
pub fn count(processes: &[&Process], sockets: &[Socket]) -> Counts {
    let mut counts = Counts::new();
    let named: BTreeSet<u64> = sockets.iter().map(|socket| socket.inode).collect();
    for process in processes {
        let Some(program) = process.program() else { continue };
        for link in process.open() {
            let text = link.to_string_lossy();
            let inode = text.strip_prefix("socket:[").and_then(|t| t.strip_suffix(']')?.parse().ok());
            if text.starts_with('/') || inode.is_some_and(|inode| named.contains(&inode)) {
                continue;
            }
            let kind = text.split(":[").next().unwrap_or_default();
            let kind = if kind == "anon_inode" { &*text } else { kind };
            *counts.entry((program.to_owned(), kind.to_owned())).or_default() += 1;
        }
    }
    counts
}

/// What has grown beyond what so many sandboxes and containers account for.
pub fn grown(before: &Counts, now: &Counts, each: usize) -> Vec<String> {
    let allowed = |key: &(String, String)| before.get(key).unwrap_or(&0) + MORE + OF_EACH * each;
    let grown = now.iter().filter(|(key, count)| **count > allowed(key));
    let told = grown.map(|((program, kind), count)| {
        let before = before.get(&(program.clone(), kind.clone())).unwrap_or(&0);
        format!("{count} descriptors {kind} of {program}, {before} at the start, with {each} sandboxes and containers")
    });
    told.collect()
}
