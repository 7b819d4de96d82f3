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

/// Devices and their holders.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// By resource: ids and whether they are healthy.
    known: BTreeMap<String, BTreeMap<String, bool>>,
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
    pub fn set_devices(&mut self, resource: &str, devices: BTreeMap<String, bool>) {
        self.known.insert(resource.to_owned(), devices);
    }

    /// How many devices there are.
    pub fn devices(&self, resource: &str) -> usize {
        self.known.get(resource).map_or(0, BTreeMap::len)
    }

    /// How many of them are healthy.
    pub fn healthy(&self, resource: &str) -> usize {
        self.known.get(resource).map_or(0, |d| d.values().filter(|healthy| **healthy).count())
    }

    /// What a container has, by resource.
    pub fn held(&self, holder: &Holder) -> BTreeMap<String, BTreeSet<String>> {
        let own = self.entries.iter().filter(|e| e.holder == *holder);
        own.map(|e| (e.resource.clone(), e.devices.clone())).collect()
    }

    /// Gives a container devices that are healthy and free; what it has already counts.
    ///
    /// # Errors
    /// When there are too few; nothing is given then.
    pub fn give(
        &mut self,
        holder: &Holder,
        wanted: &BTreeMap<String, usize>,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
        let mut given = self.held(holder);
        given.retain(|resource, _| wanted.contains_key(resource));
        for (resource, count) in wanted {
            let has = given.entry(resource.clone()).or_default();
            let free = self.free(resource);
            let missing = count.saturating_sub(has.len());
            if free.len() < missing {
                return Err(Error::Unavailable {
                    resource: resource.clone(),
                    requested: *count,
                    available: free.len() + has.len(),
                });
            }
            has.extend(free.into_iter().take(missing));
        }
        given.retain(|_, devices| !devices.is_empty());
        self.entries.retain(|e| e.holder != *holder);
        for (resource, devices) in &given {
            self.entries.push(Entry {
                holder: holder.clone(),
                resource: resource.clone(),
                devices: devices.clone(),
            });
        }
        Ok(given)
    }

    fn free(&self, resource: &str) -> Vec<String> {
        let taken: BTreeSet<&String> =
            self.entries.iter().filter(|e| e.resource == resource).flat_map(|e| &e.devices).collect();
        let known = self.known.get(resource).into_iter().flatten();
        known.filter(|(id, healthy)| **healthy && !taken.contains(id)).map(|(id, _)| id.clone()).collect()
    }

    /// Takes back what pods have that are not alive; whether anything was taken.
    pub fn retain(&mut self, alive: impl Fn(&str) -> bool) -> bool {
        let before = self.entries.len();
        self.entries.retain(|e| alive(&e.holder.pod));
        self.entries.len() != before
    }

    /// Takes the holders of another ledger, and keeps the devices of this one.
    pub fn restore_holders(&mut self, other: Ledger) {
        self.entries = other.entries;
    }
}
