//! The records in memory, their changes, and the journal that follows each of them.
//!
//! Every change is made under one lock that is never held across an await, and is handed to the journal under the same
//! lock: memory and disk see one order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::Ipv4Addr;

use coracle_cri_api::v1;
use coracle_wasm::protocol::State as Life;
use parking_lot::Mutex;
use tonic::Status;

use crate::address::{Addresses, Range};
use crate::journal::{Journal, Pending};
use crate::record::{ContainerRecord, SandboxRecord};

const SANDBOXES: &str = "sandboxes";
const CONTAINERS: &str = "containers";
/// The folders of the journal.
pub const FOLDERS: [&str; 2] = [SANDBOXES, CONTAINERS];

/// What a list of sandboxes or containers is narrowed to.
#[derive(Default)]
pub struct Filter<'a> {
    /// How the id begins; empty: all.
    pub id: &'a str,
    /// As `id`, of the sandbox that a container belongs to.
    pub sandbox_id: &'a str,
    pub labels: Option<&'a HashMap<String, String>>,
}

/// The label by which an agent asks for what is of one pod, again and again.
const POD: &str = "io.kubernetes.pod.uid";

impl Filter<'_> {
    fn matches(&self, record: &impl Listed) -> bool {
        record.sandbox_id().starts_with(self.sandbox_id)
            && record.id().starts_with(self.id)
            && self.labels.is_none_or(|wanted| wanted.iter().all(|(k, v)| record.labels().get(k) == Some(v)))
    }
}

/// A record that is listed.
trait Listed {
    fn id(&self) -> &str;
    /// Of the sandbox that it belongs to; a sandbox's own is its.
    fn sandbox_id(&self) -> &str;
    fn labels(&self) -> &HashMap<String, String>;
    /// The pod that its maker says it is of.
    fn uid(&self) -> Option<&str>;

    /// What it is asked for by: its pod and its sandbox, whose names no two have.
    fn keys(&self) -> impl Iterator<Item = &str> {
        let pod = self.labels().get(POD).map(String::as_str);
        [Some(self.sandbox_id()), pod, self.uid()].into_iter().flatten().filter(|key| !key.is_empty())
    }
}

impl Listed for SandboxRecord {
    fn id(&self) -> &str {
        &self.id
    }
    fn sandbox_id(&self) -> &str {
        &self.id
    }
    fn labels(&self) -> &HashMap<String, String> {
        &self.config.labels
    }
    fn uid(&self) -> Option<&str> {
        self.config.metadata.as_ref().map(|metadata| metadata.uid.as_str())
    }
}

impl Listed for ContainerRecord {
    fn id(&self) -> &str {
        &self.id
    }
    fn sandbox_id(&self) -> &str {
        &self.sandbox_id
    }
    fn labels(&self) -> &HashMap<String, String> {
        &self.config.labels
    }
    fn uid(&self) -> Option<&str> {
        None
    }
}

/// Records by id, and which of them each pod and sandbox has: thousands are not looked through for the few of one.
struct Records<T> {
    by_id: BTreeMap<String, T>,
    by_key: HashMap<String, BTreeSet<String>>,
}

impl<T: Listed> Records<T> {
    fn new() -> Self {
        Self { by_id: BTreeMap::new(), by_key: HashMap::new() }
    }

    fn insert(&mut self, record: T) {
        let id = record.id().to_owned();
        for key in record.keys() {
            self.by_key.entry(key.to_owned()).or_default().insert(id.clone());
        }
        self.by_id.insert(id, record);
    }

    fn remove(&mut self, id: &str) -> Option<T> {
        let record = self.by_id.remove(id)?;
        for key in record.keys() {
            if let Some(ids) = self.by_key.get_mut(key) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
        Some(record)
    }

    fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.by_id.get_mut(id)
    }

    /// Those of a pod, or of a sandbox.
    fn of(&self, key: &str) -> impl Iterator<Item = &T> {
        self.by_key.get(key).into_iter().flatten().filter_map(|id| self.by_id.get(id))
    }

    /// Those that a filter leaves.
    fn matching<'a>(&'a self, filter: &'a Filter<'_>) -> impl Iterator<Item = &'a T> {
        let pod = filter.labels.and_then(|labels| labels.get(POD)).filter(|pod| !pod.is_empty());
        // The beginning of an id is no key.
        let key =
            pod.map(String::as_str).or(Some(filter.sandbox_id).filter(|id| self.by_key.contains_key(*id)));
        let all = key.is_none().then(|| self.by_id.values()).into_iter().flatten();
        let of_key = key.into_iter().flat_map(|key| self.of(key));
        all.chain(of_key).filter(|record| filter.matches(*record))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    struct Record {
        id: String,
        sandbox: String,
        labels: HashMap<String, String>,
    }

    impl Listed for Record {
        fn id(&self) -> &str {
            &self.id
        }
        fn sandbox_id(&self) -> &str {
            &self.sandbox
        }
        fn labels(&self) -> &HashMap<String, String> {
            &self.labels
        }
        fn uid(&self) -> Option<&str> {
            Some("")
        }
    }

    fn labels(of: &[(&str, &str)]) -> HashMap<String, String> {
        of.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn records_of_a_pod_or_a_sandbox_are_found_among_all() {
        let mut records = Records::new();
        for (id, sandbox, of) in [
            ("1", "s1", &[(POD, "a"), ("n", "x")][..]),
            ("2", "s2", &[(POD, "b"), ("n", "x")]),
            ("3", "s1", &[(POD, "a")]),
            ("4", "s3", &[]),
        ] {
            let (id, sandbox) = (id.to_owned(), sandbox.to_owned());
            records.insert(Record { id, sandbox, labels: labels(of) });
        }
        let ids = |records: &Records<Record>, filter: &Filter<'_>| {
            records.matching(filter).map(|record| record.id.clone()).collect::<String>()
        };
        let labelled = |records: &Records<Record>, wanted: &[(&str, &str)]| {
            ids(records, &Filter { labels: Some(&labels(wanted)), ..Filter::default() })
        };
        let within = |records: &Records<Record>, sandbox_id: &str| {
            ids(records, &Filter { sandbox_id, ..Filter::default() })
        };
        assert_eq!(ids(&records, &Filter::default()), "1234");
        assert_eq!(labelled(&records, &[]), "1234");
        assert_eq!(labelled(&records, &[("n", "x")]), "12");
        assert_eq!(labelled(&records, &[(POD, "a")]), "13");
        assert_eq!(labelled(&records, &[(POD, "a"), ("n", "x")]), "1");
        assert_eq!(labelled(&records, &[(POD, "c")]), "");
        assert_eq!(labelled(&records, &[(POD, "")]), "");
        assert_eq!(within(&records, "s1"), "13");
        assert_eq!(within(&records, "s"), "1234", "the beginning of an id");
        assert_eq!(within(&records, "s4"), "");
        assert_eq!(ids(&records, &Filter { id: "3", sandbox_id: "s1", labels: None }), "3");
        for id in ["1", "3"] {
            assert!(records.remove(id).is_some());
        }
        assert_eq!(
            (labelled(&records, &[(POD, "a")]), within(&records, "s1")),
            (String::new(), String::new())
        );
        assert_eq!(records.by_key.len(), 3, "one pod and two sandboxes");
    }
}
