//! Pure: which devices there are and who has them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Error;

/// A container that has devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// The pod's uid.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

/// One container's devices of one resource, as they are written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    pub holder: Holder,
    pub resource: String,
    pub devices: BTreeSet<String>,
}

/// A device as its plugin tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// It can be given out.
    pub healthy: bool,
    /// The memory nodes that it is near; empty: its plugin does not say.
    pub nodes: BTreeSet<u32>,
}

/// A device that may be given to a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Healthy, and nobody else's.
    pub free: bool,
    /// The memory nodes that it is near; empty: its plugin does not say.
    pub nodes: BTreeSet<u32>,
}

/// What is decided of a container's devices of one resource, and what its plugin may still choose from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// These in any case.
    pub must: BTreeSet<String>,
    /// So many more of these, the better ones first.
    pub missing: usize,
    /// See `missing`.
    pub pool: Vec<String>,
}

impl Choice {
    /// All devices: first of those that the plugin prefers.
    pub fn fill(self, preferred: &[String]) -> BTreeSet<String> {
        let mut all = self.must;
        let end = all.len().saturating_add(self.missing);
        let first = preferred.iter().filter(|id| self.pool.contains(id));
        for id in first.chain(&self.pool) {
            if all.len() < end {
                all.insert(id.clone());
            }
        }
        all
    }
}

/// Devices and their holders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// By resource and id.
    known: BTreeMap<String, BTreeMap<String, Known>>,
    entries: Vec<Entry>,
    /// Resources that a plugin ever served.
    registered: BTreeSet<String>,
}

impl Ledger {
    pub(super) fn read(entries: Vec<Entry>, registered: BTreeSet<String>) -> Self {
        Self { known: BTreeMap::new(), entries, registered }
    }

    /// Notes that a plugin serves a resource.
    pub fn register(&mut self, resource: &str) {
        self.registered.insert(resource.to_owned());
    }

    /// Whether a plugin serves a resource, or did.
    pub fn is_registered(&self, resource: &str) -> bool {
        self.registered.contains(resource)
    }

    pub(super) fn registered(&self) -> &BTreeSet<String> {
        &self.registered
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Replaces the devices of a resource. Holders keep what they have.
    pub fn set_devices(&mut self, resource: &str, devices: BTreeMap<String, Known>) {
        self.known.insert(resource.to_owned(), devices);
    }

    /// How many devices there are.
    pub fn devices(&self, resource: &str) -> usize {
        self.known.get(resource).map_or(0, BTreeMap::len)
    }

    /// How many of them are healthy.
    pub fn healthy(&self, resource: &str) -> usize {
        self.known.get(resource).map_or(0, |d| d.values().filter(|one| one.healthy).count())
    }

    /// What a container has, by resource.
    pub fn held(&self, holder: &Holder) -> BTreeMap<String, BTreeSet<String>> {
        let own = self.entries.iter().filter(|e| e.holder == *holder);
        own.map(|e| (e.resource.clone(), e.devices.clone())).collect()
    }

    /// The devices of a resource, as a container of a pod sees them: those of init containers of it that have `ended` by
    /// then are free for it.
    pub fn seen(&self, holder: &Holder, resource: &str, ended: &[&str]) -> Vec<Seen> {
        let free: BTreeSet<String> = self.free(holder, resource, ended).collect();
        let known = self.known.get(resource).into_iter().flatten();
        known.map(|(id, one)| Seen { free: free.contains(id), nodes: one.nodes.clone() }).collect()
    }

    /// Which devices of a resource a container gets: what it has already, what init containers of its pod leave that have
    /// `ended` by then, what is near these memory nodes; and what is left for its plugin to choose.
    ///
    /// # Errors
    /// When there are too few.
    pub fn choose(
        &self,
        holder: &Holder,
        (resource, count): (&str, usize),
        near: Option<&BTreeSet<u32>>,
        ended: &[&str],
    ) -> Result<Choice, Error> {
        let mut must = self.held(holder).remove(resource).unwrap_or_default();
        let all: Vec<String> = self.free(holder, resource, ended).filter(|id| !must.contains(id)).collect();
        let available = all.len() + must.len();
        if available < count {
            let resource = resource.to_owned();
            return Err(Error::Unavailable { resource, requested: count, available });
        }
        let left = self.left(holder, resource, ended);
        let (reused, mut pool): (Vec<_>, Vec<_>) = all.into_iter().partition(|id| left.contains(id));
        must.extend(reused.into_iter().take(count.saturating_sub(must.len())));
        let nodes = |id: &String| self.known.get(resource).and_then(|d| d.get(id)).map(|one| &one.nodes);
        let is_near = |id: &String| {
            near.is_some_and(|near| nodes(id).is_some_and(|nodes| nodes.iter().any(|n| near.contains(n))))
        };
        let mut missing = count.saturating_sub(must.len());
        let aligned: Vec<String> = pool.iter().filter(|id| is_near(id)).cloned().collect();
        if missing < aligned.len() {
            pool = aligned;
        } else {
            missing -= aligned.len();
            pool.retain(|id| !aligned.contains(id));
            // Those of nowhere in particular may be near something else.
            pool.sort_by_key(|id| nodes(id).is_none_or(BTreeSet::is_empty));
            must.extend(aligned);
        }
        Ok(Choice { must, missing, pool })
    }

    /// Writes down what a container has.
    pub fn give(&mut self, holder: &Holder, given: &BTreeMap<String, BTreeSet<String>>) {
        self.entries.retain(|e| e.holder != *holder);
        for (resource, devices) in given.iter().filter(|(_, devices)| !devices.is_empty()) {
            self.entries.push(Entry {
                holder: holder.clone(),
                resource: resource.clone(),
                devices: devices.clone(),
            });
        }
    }

    /// What init containers of a container's pod have that end before it begins, and no other container of the pod.
    fn left(&self, holder: &Holder, resource: &str, ended: &[&str]) -> BTreeSet<&String> {
        let pod = self.entries.iter().filter(|e| e.resource == resource && e.holder.pod == holder.pod);
        let (before, beside): (Vec<_>, Vec<_>) =
            pod.filter(|e| e.holder != *holder).partition(|e| ended.contains(&e.holder.container.as_str()));
        let beside: BTreeSet<&String> = beside.into_iter().flat_map(|e| &e.devices).collect();
        before.into_iter().flat_map(|e| &e.devices).filter(|id| !beside.contains(id)).collect()
    }

    fn free(&self, holder: &Holder, resource: &str, ended: &[&str]) -> impl Iterator<Item = String> {
        let left = self.left(holder, resource, ended);
        let others = self.entries.iter().filter(|e| e.resource == resource && e.holder != *holder);
        let taken: BTreeSet<&String> =
            others.flat_map(|e| &e.devices).filter(|id| !left.contains(id)).collect();
        let known = self.known.get(resource).into_iter().flatten();
        let free = known.filter(|(id, one)| one.healthy && !taken.contains(id)).map(|(id, _)| id.clone());
        free.collect::<Vec<_>>().into_iter()
    }

    /// Takes back what pods have that are not alive; whether anything was taken.
    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|e| alive(&e.holder.pod));
        self.entries.len() != before
    }

    /// Leaves a container what it had `before`. One that has nothing any more went meanwhile, and gets nothing back.
    pub fn take_back(&mut self, holder: &Holder, before: &BTreeMap<String, BTreeSet<String>>) {
        if !self.held(holder).is_empty() {
            self.give(holder, before);
        }
    }
}
