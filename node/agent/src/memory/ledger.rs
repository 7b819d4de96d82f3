//! Pure, but for its file: which containers have memory of which memory nodes (the kubelet's static memory manager policy).
//!
//! A node gives memory either by itself or together with a group of others, never both: what one container has of a group
//! is not counted to one of its nodes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::machine::{Amounts, MEMORY};
use crate::checkpoint::{self, Checkpoint, Entries};
use crate::numa::hints::{Hint, Mask, Offers, masks};

/// The policy's name in the checkpoint.
pub const STATIC: &str = "Static";

/// What a container has of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Where.
    #[serde(rename = "numaAffinity")]
    pub nodes: Vec<u32>,
    /// `memory`, `hugepages-2Mi` ...
    #[serde(rename = "type")]
    pub resource: String,
    /// Bytes. Of an init container less than it asked for, where containers after it use the same.
    pub size: u64,
}

/// One resource of one node, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    total: u64,
    system_reserved: u64,
    allocatable: u64,
    reserved: u64,
    free: u64,
}

/// One node as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    number_of_assignments: usize,
    memory_map: BTreeMap<String, Table>,
    /// The group that it gives memory with: itself, or itself and others.
    cells: Vec<u32>,
}

impl Node {
    fn free(&self, resource: &str) -> u64 {
        self.memory_map.get(resource).map_or(0, |t| t.free)
    }
}

/// The nodes as they are now.
pub type Nodes = BTreeMap<u32, Node>;

/// The file's form is the kubelet's, without its checksum.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    policy_name: String,
    #[serde(default)]
    machine_state: Nodes,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, Vec<Block>>>,
}

/// Who has what.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    /// What each node has.
    pub machine: BTreeMap<u32, Amounts>,
    /// What of it is not for containers.
    pub reserved: BTreeMap<u32, Amounts>,
    /// By pod and container.
    pub entries: Entries<Vec<Block>>,
}

fn sum(list: impl Iterator<Item = u64>) -> u64 {
    list.fold(0, u64::saturating_add)
}

impl Ledger {
    /// All nodes that have memory.
    pub fn mask(&self) -> Mask {
        Mask::of(self.machine.keys().copied())
    }

    /// The nodes with nothing given.
    fn empty(&self) -> Nodes {
        let node = |(id, amounts): (&u32, &Amounts)| {
            let huge = sum(amounts.iter().filter(|(name, _)| *name != MEMORY).map(|(_, bytes)| *bytes));
            let table = |(name, total): (&String, &u64)| {
                let reserved = self.reserved.get(id).and_then(|r| r.get(name)).copied().unwrap_or(0);
                let other = if name == MEMORY { huge } else { 0 };
                let allocatable = total.saturating_sub(reserved).saturating_sub(other);
                let table = Table {
                    total: *total,
                    system_reserved: reserved,
                    allocatable,
                    reserved: 0,
                    free: allocatable,
                };
                (name.clone(), table)
            };
            let memory_map = amounts.iter().map(table).collect();
            (*id, Node { number_of_assignments: 0, memory_map, cells: vec![*id] })
        };
        self.machine.iter().map(node).collect()
    }

    /// The nodes as they are now: of a group the first ones give first.
    pub fn nodes(&self) -> Nodes {
        let mut nodes = self.empty();
        for block in self.entries.values().flat_map(BTreeMap::values).flatten() {
            let mut left = block.size;
            for id in &block.nodes {
                let Some(node) = nodes.get_mut(id) else { continue };
                node.number_of_assignments += 1;
                node.cells.clone_from(&block.nodes);
                if let Some(table) = node.memory_map.get_mut(&block.resource) {
                    let part = left.min(table.free);
                    (table.free, table.reserved) = (table.free - part, table.reserved + part);
                    left -= part;
                }
            }
        }
        nodes
    }

    /// What init containers of a pod have on exactly these nodes: it is free for the containers after them.
    fn reusable(&self, pod: &str, ended: &[&str], mask: Mask, resource: &str) -> u64 {
        let of =
            self.entries.get(pod).into_iter().flatten().filter(|(name, _)| ended.contains(&name.as_str()));
        let blocks = of.flat_map(|(_, blocks)| blocks);
        let same = blocks.filter(|b| b.resource == resource && Mask::of(b.nodes.iter().copied()) == mask);
        sum(same.map(|b| b.size))
    }

    /// Where a container that asks for `wanted` can have it, with what init containers that have `ended` leave it. For
    /// every resource the same; nothing at all where there is no such place. Preferred are the fewest nodes that have so
    /// much, whether it is free or not.
    pub fn offers(&self, pod: &str, wanted: &Amounts, ended: &[&str]) -> Offers {
        if wanted.is_empty() {
            return Offers::new();
        }
        let hints = self.hints(&self.nodes(), pod, wanted, ended);
        match hints.is_empty() {
            true => Offers::new(),
            false => wanted.keys().map(|name| (name.clone(), Some(hints.clone()))).collect(),
        }
    }

    fn hints(&self, nodes: &Nodes, pod: &str, wanted: &Amounts, ended: &[&str]) -> Vec<Hint> {
        let total =
            |mask: Mask, of: &dyn Fn(&Node) -> u64| sum(mask.nodes().filter_map(|id| nodes.get(&id)).map(of));
        let fits = |mask: Mask| {
            let allocatable =
                |node: &Node, name: &str| node.memory_map.get(name).map_or(0, |t| t.allocatable);
            wanted.iter().all(|(name, bytes)| total(mask, &|node| allocatable(node, name)) >= *bytes)
        };
        let candidates: Vec<Mask> = masks(self.mask()).filter(|mask| fits(*mask)).collect();
        let least = candidates.iter().map(|mask| mask.count()).min().unwrap_or(0);
        let has = |mask: Mask| {
            wanted.iter().all(|(name, bytes)| {
                let free = total(mask, &|node| node.free(name));
                free.saturating_add(self.reusable(pod, ended, mask, name)) >= *bytes
            })
        };
        let good = candidates.into_iter().filter(|mask| keeps_groups(nodes, *mask) && has(*mask));
        good.map(|mask| Hint { nodes: Some(mask), preferred: mask.count() == least }).collect()
    }

    /// Gives a container memory of the nodes that were chosen, or of more of them where these have too little; without
    /// a choice, of the best. What it has, it keeps. Init containers that have `ended` by then leave theirs to it. Returns
    /// whether anything changed.
    ///
    /// # Errors
    /// When there is not enough, in the kubelet's words; nothing changed then.
    pub fn give(
        &mut self,
        (pod, container): (&str, &str),
        wanted: &Amounts,
        ended: &[&str],
        chosen: Hint,
    ) -> Result<bool, String> {
        if wanted.is_empty() || self.entries.get(pod).is_some_and(|c| c.contains_key(container)) {
            return Ok(false);
        }
        let nodes = self.nodes();
        let hints = self.hints(&nodes, pod, wanted, ended);
        let best = |within: Mask| {
            let wide = hints.iter().filter(|h| h.nodes.is_some_and(|mask| mask.covers(within)));
            let key = |h: &&Hint| (!h.preferred, h.nodes.map(|m| (m.count(), m)));
            wide.min_by_key(key).copied()
        };
        let mut hint = match chosen.nodes {
            Some(_) => chosen,
            None => {
                let words =
                    "failed to get the default NUMA affinity, no NUMA nodes with enough memory is available";
                let found = best(Mask::default()).ok_or_else(|| failed(words))?;
                if chosen.preferred && !found.preferred {
                    return Err(failed("failed to find the default preferred hint"));
                }
                found
            }
        };
        let mask = hint.nodes.unwrap_or_default();
        let free = |name: &str| sum(mask.nodes().filter_map(|id| nodes.get(&id)).map(|node| node.free(name)));
        let enough = |(name, bytes): (&String, &u64)| {
            free(name).saturating_add(self.reusable(pod, ended, mask, name)) >= *bytes
        };
        if !wanted.iter().all(enough) {
            let words = "failed to find NUMA nodes to extend the current topology hint";
            let found = best(mask).ok_or_else(|| failed(words))?;
            if hint.preferred && !found.preferred {
                return Err(failed("failed to find the extended preferred hint"));
            }
            hint = found;
        }
        let mask = hint.nodes.unwrap_or_default();
        if !keeps_groups(&nodes, mask) {
            return Err(failed("preferred hint violates NUMA node allocation"));
        }
        self.write_down(pod, container, wanted, ended, mask);
        Ok(true)
    }

    fn write_down(&mut self, pod: &str, container: &str, wanted: &Amounts, ended: &[&str], mask: Mask) {
        let nodes: Vec<u32> = mask.nodes().collect();
        let containers = self.entries.entry(pod.to_owned()).or_default();
        for (resource, bytes) in wanted {
            let mut left = *bytes;
            let before = containers.iter_mut().filter(|(name, _)| ended.contains(&name.as_str()));
            let blocks = before.flat_map(|(_, blocks)| blocks);
            for block in blocks.filter(|b| b.resource == *resource && b.nodes == nodes) {
                let part = left.min(block.size);
                (block.size, left) = (block.size - part, left - part);
            }
        }
        let block = |(resource, size): (&String, &u64)| Block {
            nodes: nodes.clone(),
            resource: resource.clone(),
            size: *size,
        };
        containers.insert(container.to_owned(), wanted.iter().map(block).collect());
    }

    /// The nodes of a container's memory.
    pub fn of(&self, pod: &str, container: &str) -> Option<Mask> {
        let blocks = self.entries.get(pod)?.get(container)?;
        Some(Mask::of(blocks.iter().flat_map(|b| b.nodes.iter().copied())))
    }
}

impl checkpoint::Ledger for Ledger {
    const MANAGER: &'static str = "memory manager";
    type Share = Vec<Block>;

    fn entries(&self) -> &Entries<Self::Share> {
        &self.entries
    }

    fn entries_mut(&mut self) -> &mut Entries<Self::Share> {
        &mut self.entries
    }

    fn read(&mut self, path: &Path) -> Result<(), String> {
        let checkpoint = state(path);
        let Some(file) = checkpoint.read::<File>()? else { return Ok(()) };
        if file.entries.is_empty() {
            // Nobody has anything: other reservations, or other memory, do no harm.
            return Ok(());
        }
        self.entries = file.entries;
        if self.nodes() != file.machine_state {
            self.entries.clear();
            return Err(checkpoint.failed("the expected machine state is different from the real one"));
        }
        Ok(())
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        state(path).write(File {
            policy_name: STATIC.to_owned(),
            machine_state: self.nodes(),
            entries: self.entries.clone(),
        })
    }
}

fn state(path: &Path) -> Checkpoint<'_> {
    Checkpoint { path, manager: <Ledger as checkpoint::Ledger>::MANAGER, policy: STATIC }
}

fn failed(words: &str) -> String {
    format!("[memorymanager] {words}")
}

/// Whether nodes give memory alone, or with the group that they give it with already.
fn keeps_groups(nodes: &Nodes, mask: Mask) -> bool {
    mask.nodes().filter_map(|id| nodes.get(&id)).filter(|node| node.number_of_assignments > 0).all(|node| {
        let group = Mask::of(node.cells.iter().copied());
        group == mask
    })
}

#[cfg(test)]
mod tests;
