//! The records in memory, their changes, and the journal that follows each of them.
//!
//! Every change is made under one lock that is never held across an await, and is handed to the journal under the same
//! lock: memory and disk see one order.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use coracle_cri_api::v1;
use coracle_wasm::protocol::State as Life;
use parking_lot::Mutex;
use tonic::Status;

use crate::address::{Addresses, Range};
use crate::journal::{Journal, Pending};
use crate::record::{ContainerRecord, SandboxRecord};

mod records;

pub use records::Filter;
use records::Records;

const SANDBOXES: &str = "sandboxes";
const CONTAINERS: &str = "containers";
/// The folders of the journal.
pub const FOLDERS: [&str; 2] = [SANDBOXES, CONTAINERS];

/// Sandboxes and containers.
pub struct State {
    inner: Mutex<Inner>,
    journal: Journal,
}

struct Inner {
    sandboxes: Records<SandboxRecord>,
    containers: Records<ContainerRecord>,
    addresses: Addresses,
    /// Names of sandboxes and containers that are being made.
    reserved: HashSet<String>,
}

/// A name that nobody else can take until this is dropped.
pub struct Reservation<'a> {
    state: &'a State,
    name: String,
    address: Option<Ipv4Addr>,
}

impl Reservation<'_> {
    /// The address that was given out with it; kept only if a record with it is added.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    /// A record has the name and the address from now on.
    pub fn settled(mut self) {
        self.address = None;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut inner = self.state.inner.lock();
        inner.reserved.remove(&self.name);
        if let Some(address) = self.address {
            inner.addresses.release(address);
        }
    }
}

impl State {
    /// Loads what the journal has.
    pub fn load(journal: Journal) -> anyhow::Result<Self> {
        let mut addresses = Addresses::default();
        let mut sandboxes = Records::new();
        for record in journal.load::<SandboxRecord>(SANDBOXES)? {
            if record.ready {
                addresses.take(record.ip);
            }
            sandboxes.insert(record);
        }
        let mut containers = Records::new();
        for record in journal.load::<ContainerRecord>(CONTAINERS)? {
            if sandboxes.by_id.contains_key(&record.sandbox_id) {
                containers.insert(record);
            } else {
                tracing::warn!(
                    container = record.id,
                    sandbox = record.sandbox_id,
                    "a container without a sandbox"
                );
                // It is not shown from now on; should the file outlive a crash, this happens again.
                drop(journal.remove(CONTAINERS, &record.id));
            }
        }
        let inner = Inner { sandboxes, containers, addresses, reserved: HashSet::new() };
        Ok(Self { inner: Mutex::new(inner), journal })
    }

    /// The pod range in use.
    pub fn range(&self) -> Option<Range> {
        self.inner.lock().addresses.range()
    }

    /// Sets the pod range for sandboxes from now on.
    pub fn set_range(&self, range: Range) {
        self.inner.lock().addresses.set_range(range);
    }

    /// Keeps an address from being given out.
    pub fn withhold(&self, address: Ipv4Addr) {
        self.inner.lock().addresses.take(address);
    }

    /// Everything, as it is now.
    pub fn snapshot(&self) -> (Vec<SandboxRecord>, Vec<ContainerRecord>) {
        let inner = self.inner.lock();
        (
            inner.sandboxes.by_id.values().cloned().collect(),
            inner.containers.by_id.values().cloned().collect(),
        )
    }

    /// Takes the name of a sandbox, and an address for it unless it is to be on the host's network.
    pub fn reserve_sandbox(
        &self,
        metadata: &v1::PodSandboxMetadata,
        addressed: bool,
    ) -> Result<Reservation<'_>, Status> {
        let v1::PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
        let key = format!("{namespace}/{name}/{uid}/{attempt}");
        let mut inner = self.inner.lock();
        // Without a uid it is nobody's that can be found by it.
        let all = uid.is_empty().then(|| inner.sandboxes.by_id.values()).into_iter().flatten();
        let mut alike = all.chain(inner.sandboxes.of(uid));
        let taken = alike.find(|s| s.config.metadata.as_ref() == Some(metadata)).map(|s| s.id.clone());
        drop(alike);
        if let Some(taken) = taken {
            return Err(Status::already_exists(format!(
                "sandbox {taken} is attempt {attempt} of pod {namespace}/{name} already"
            )));
        }
        if inner.reserved.contains(&key) {
            return Err(Status::already_exists(format!(
                "attempt {attempt} of pod {namespace}/{name} is being made already"
            )));
        }
        if !addressed {
            inner.reserved.insert(key.clone());
            return Ok(Reservation { state: self, name: key, address: None });
        }
        let address = inner.addresses.allocate().map_err(|e| match e {
            crate::address::Error::Unset => {
                Status::failed_precondition(format!("{e}: it comes with UpdateRuntimeConfig or --pod-cidr"))
            }
            e => Status::resource_exhausted(e.to_string()),
        })?;
        inner.reserved.insert(key.clone());
        Ok(Reservation { state: self, name: key, address: Some(address) })
    }

    /// Takes the name of a container in its sandbox.
    pub fn reserve_container(
        &self,
        sandbox_id: &str,
        metadata: &v1::ContainerMetadata,
    ) -> Result<Reservation<'_>, Status> {
        let key = format!("{sandbox_id}/{}/{}", metadata.name, metadata.attempt);
        let mut inner = self.inner.lock();
        let taken = inner.containers.of(sandbox_id).any(|c| c.config.metadata.as_ref() == Some(metadata));
        if taken || inner.reserved.contains(&key) {
            return Err(Status::already_exists(format!(
                "attempt {} of container {} exists in sandbox {sandbox_id} already",
                metadata.attempt, metadata.name
            )));
        }
        inner.reserved.insert(key.clone());
        Ok(Reservation { state: self, name: key, address: None })
    }

    /// Adds a sandbox.
    pub fn add_sandbox(&self, record: SandboxRecord) -> Pending {
        let mut inner = self.inner.lock();
        let pending = self.journal.write(SANDBOXES, &record.id, &record);
        inner.sandboxes.insert(record);
        pending
    }

    /// Adds a container, unless its sandbox was stopped meanwhile.
    pub fn add_container(&self, record: ContainerRecord) -> Option<Pending> {
        let mut inner = self.inner.lock();
        if !inner.sandboxes.by_id.get(&record.sandbox_id).is_some_and(|s| s.ready) {
            return None;
        }
        let pending = self.journal.write(CONTAINERS, &record.id, &record);
        inner.containers.insert(record);
        Some(pending)
    }

    /// The sandbox of this id (or the beginning of one, if no other begins so).
    pub fn sandbox(&self, id: &str) -> Option<SandboxRecord> {
        by_prefix(&self.inner.lock().sandboxes.by_id, id).cloned()
    }

    /// As [`State::sandbox`], of a container.
    pub fn container(&self, id: &str) -> Option<ContainerRecord> {
        by_prefix(&self.inner.lock().containers.by_id, id).cloned()
    }

    /// The sandboxes that a filter leaves, oldest first.
    pub fn sandboxes(&self, filter: &Filter<'_>) -> Vec<SandboxRecord> {
        let inner = self.inner.lock();
        let mut found: Vec<_> = inner.sandboxes.matching(filter).cloned().collect();
        found.sort_by_key(|s| s.created_at_ns);
        found
    }

    /// The containers that a filter leaves, oldest first.
    pub fn containers(&self, filter: &Filter<'_>) -> Vec<ContainerRecord> {
        let inner = self.inner.lock();
        let mut found: Vec<_> = inner.containers.matching(filter).cloned().collect();
        found.sort_by_key(|c| c.created_at_ns);
        found
    }

    /// How many sandboxes that are not stopped a shared host has.
    pub fn on_host(&self, number: u32) -> u64 {
        let inner = self.inner.lock();
        inner.sandboxes.by_id.values().filter(|s| s.ready && s.host == number).count() as u64
    }

    /// Marks a sandbox as stopped and gives its address back; `None` if it was already, or is not there.
    pub fn stop_sandbox(&self, id: &str) -> Option<Pending> {
        let mut inner = self.inner.lock();
        let record = inner.sandboxes.get_mut(id).filter(|s| s.ready)?;
        record.ready = false;
        let (ip, pending) = (record.ip, self.journal.write(SANDBOXES, id, record));
        inner.addresses.release(ip);
        Some(pending)
    }

    /// Forgets a sandbox and its containers.
    pub fn remove_sandbox(&self, id: &str) -> Vec<Pending> {
        let mut inner = self.inner.lock();
        let of_it: Vec<String> = inner.containers.of(id).map(|c| c.id.clone()).collect();
        let mut pending = Vec::new();
        for container in of_it {
            inner.containers.remove(&container);
            pending.push(self.journal.remove(CONTAINERS, &container));
        }
        if let Some(record) = inner.sandboxes.remove(id) {
            if record.ready {
                inner.addresses.release(record.ip);
            }
            pending.push(self.journal.remove(SANDBOXES, id));
        }
        pending
    }

    /// Forgets a container.
    pub fn remove_container(&self, id: &str) -> Option<Pending> {
        let mut inner = self.inner.lock();
        inner.containers.remove(id)?;
        Some(self.journal.remove(CONTAINERS, id))
    }

    /// Gives a container other resources; `None` when it is not there.
    pub fn set_resources(&self, id: &str, resources: v1::LinuxContainerResources) -> Option<Pending> {
        let mut inner = self.inner.lock();
        let record = inner.containers.get_mut(id)?;
        record.config.linux.get_or_insert_default().resources = Some(resources);
        Some(self.journal.write(CONTAINERS, id, record))
    }

    /// Gives a pod other resources; those that are not named stay as they are. `None` when it is not there.
    pub fn set_pod_resources(
        &self,
        id: &str,
        resources: Option<v1::LinuxContainerResources>,
        overhead: Option<v1::LinuxContainerResources>,
    ) -> Option<Pending> {
        let mut inner = self.inner.lock();
        let record = inner.sandboxes.get_mut(id)?;
        let linux = record.config.linux.get_or_insert_default();
        linux.resources = resources.or(linux.resources.take());
        linux.overhead = overhead.or(linux.overhead.take());
        Some(self.journal.write(SANDBOXES, id, record))
    }

    /// Moves a container on in its life. Nothing comes after Exited, and nothing goes back: then, and when it is not
    /// there, the answer is `None`; else what it was before, and the record.
    pub fn advance(&self, id: &str, life: Life) -> Option<(Life, ContainerRecord, Pending)> {
        let mut inner = self.inner.lock();
        let record = inner.containers.get_mut(id)?;
        let onward = match (&record.state, &life) {
            (Life::Exited { .. }, _) | (_, Life::Created) => false,
            (Life::Running { .. }, Life::Running { .. }) => false,
            (Life::Created | Life::Running { .. }, _) => true,
        };
        if !onward {
            return None;
        }
        let before = std::mem::replace(&mut record.state, life);
        let pending = self.journal.write(CONTAINERS, id, record);
        Some((before, record.clone(), pending))
    }
}

fn by_prefix<'a, T>(map: &'a BTreeMap<String, T>, id: &str) -> Option<&'a T> {
    if id.is_empty() {
        return None;
    }
    if let Some(exact) = map.get(id) {
        return Some(exact);
    }
    let mut range = map.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    match (range.next(), range.next()) {
        (Some((_, found)), None) => Some(found),
        _ => None,
    }
}
