//! The agent's side: which devices there are, and which container has which. A device is given to one container at a
//! time; who has it is written to a checkpoint before the container is made, so that a restart gives nothing twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::plugin::{channel, listen};
use crate::v1beta1::device_plugin_client::DevicePluginClient;
use crate::v1beta1::registration_server::RegistrationServer;
use crate::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Device, Empty, PreStartContainerRequest, PreferredAllocationRequest,
};
use crate::{HEALTHY, KUBELET_SOCKET};

mod checkpoint;
mod ledger;
mod registration;

pub use ledger::{Choice, Holder, Known, Ledger, Seen};

/// Resources at a time.
const MAX_RESOURCES: usize = 256;
/// Devices of one resource.
const MAX_DEVICES: usize = 65_536;
const CALL: Duration = Duration::from_secs(60);

/// Why a container does not get its devices: `UnexpectedAdmissionError`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fewer are free than were asked for.
    #[error(
        "Allocate failed due to requested number of devices unavailable for {resource}. Requested: {requested}, Available: {available}, which is unexpected"
    )]
    Unavailable {
        /// The resource.
        resource: String,
        /// Asked for.
        requested: usize,
        /// Healthy and free.
        available: usize,
    },
    /// No plugin serves the resource now.
    #[error("Allocate failed: no device plugin serves {0} at the moment")]
    NoPlugin(String),
    /// The plugin refused.
    #[error("Allocate failed due to rpc error: code = {:?} desc = {}", .0.code(), .0.message())]
    Plugin(Box<Status>),
    /// Who has what could not be written down.
    #[error("write the checkpoint of devices {path}: {source}", path = .path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// What a node has of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount {
    /// The resource's name.
    pub resource: String,
    /// All devices.
    pub capacity: usize,
    /// The healthy ones.
    pub allocatable: usize,
}

#[derive(Default)]
struct Plugin {
    endpoint: String,
    pre_start: bool,
    /// It says which devices go well together.
    prefers: bool,
    /// The plugin's stream is open.
    connected: bool,
    /// Which registration; an older stream changes nothing.
    generation: u64,
}

#[derive(Default)]
struct State {
    plugins: BTreeMap<String, Plugin>,
    ledger: Ledger,
    generation: u64,
}

struct Inner {
    directory: PathBuf,
    checkpoint: PathBuf,
    state: Mutex<State>,
    changed: Notify,
    /// One allocation at a time, so that what is written is what was decided.
    allocating: tokio::sync::Mutex<()>,
    shutdown: CancellationToken,
}

/// The devices of a node; cheap to clone.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

impl Manager {
    /// A manager of the plugins in `directory`, with what its checkpoint `checkpoint` says of before. A checkpoint that
    /// cannot be read is told and put aside: containers keep their devices, but nothing is known of them.
    pub fn new(directory: PathBuf, checkpoint: PathBuf, shutdown: CancellationToken) -> Self {
        let ledger = checkpoint::read(&checkpoint).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %checkpoint.display(), "the checkpoint of devices cannot be read");
            Ledger::default()
        });
        let state = Mutex::new(State { ledger, ..Default::default() });
        Self {
            inner: Arc::new(Inner {
                directory,
                checkpoint,
                state,
                changed: Notify::new(),
                allocating: tokio::sync::Mutex::default(),
                shutdown,
            }),
        }
    }

    /// Serves registrations until the shutdown token is cancelled.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn run(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(&self.inner.directory)?;
        let listener = listen(&self.inner.directory.join(KUBELET_SOCKET))?;
        Server::builder()
            .add_service(RegistrationServer::new(self.clone()))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                self.inner.shutdown.clone().cancelled_owned(),
            )
            .await
            .map_err(std::io::Error::other)
    }

    /// Waits until what [`Self::amounts`] says may have changed.
    pub async fn changed(&self) {
        self.inner.changed.notified().await;
    }

    /// What there is of each resource that a plugin ever registered in this life of the agent.
    pub fn amounts(&self) -> Vec<Amount> {
        let state = self.inner.state.lock();
        let amount = |(resource, plugin): (&String, &Plugin)| {
            let capacity = state.ledger.devices(resource);
            Amount {
                resource: resource.clone(),
                capacity,
                // Nothing can be allocated without its plugin.
                allocatable: if plugin.connected { state.ledger.healthy(resource) } else { 0 },
            }
        };
        state.plugins.iter().map(amount).collect()
    }

    /// Whether a plugin serves this resource, or did before the agent was restarted.
    pub fn knows(&self, resource: &str) -> bool {
        let state = self.inner.state.lock();
        state.plugins.contains_key(resource) || state.ledger.is_registered(resource)
    }

    /// Devices of a container that has them already: those of a restart are those of before.
    pub fn held(&self, holder: &Holder) -> BTreeMap<String, BTreeSet<String>> {
        self.inner.state.lock().ledger.held(holder)
    }

    /// The devices of a resource, as a container sees them that begins when init containers of its pod have `ended`.
    pub fn seen(&self, holder: &Holder, resource: &str, ended: &[&str]) -> Vec<Seen> {
        self.inner.state.lock().ledger.seen(holder, resource, ended)
    }

    /// Gives devices to a container, `wanted` of each resource, and asks their plugins what the container gets.
    /// A container that has devices keeps them; it may have what init containers of its pod have that `ended` before it.
    ///
    /// # Errors
    /// When fewer are free, or a plugin does not answer. Nothing was given then.
    pub async fn allocate(
        &self,
        holder: &Holder,
        wanted: &BTreeMap<String, usize>,
        ended: &[&str],
    ) -> Result<ContainerAllocateResponse, Error> {
        let _one = self.inner.allocating.lock().await;
        let before = self.held(holder);
        let result = async {
            let given = self.give(holder, wanted, None, ended).await?;
            let mut all = ContainerAllocateResponse::default();
            for (resource, ids) in &given {
                merge(&mut all, self.ask(resource, ids).await?);
            }
            Ok(all)
        };
        let result = result.await;
        if result.is_err() {
            self.inner.state.lock().ledger.take_back(holder, &before);
            self.write()?;
        }
        result
    }

    /// Keeps devices for a container that is made later, those near these memory nodes first; its plugins are asked what it
    /// gets when it is made.
    ///
    /// # Errors
    /// When fewer are free. Nothing was given then.
    pub async fn reserve(
        &self,
        holder: &Holder,
        wanted: &BTreeMap<String, usize>,
        near: Option<&BTreeSet<u32>>,
        ended: &[&str],
    ) -> Result<(), Error> {
        let _one = self.inner.allocating.lock().await;
        self.give(holder, wanted, near, ended).await.map(drop)
    }

    /// One at a time: see `allocating`. Nothing changed where it fails before the end.
    async fn give(
        &self,
        holder: &Holder,
        wanted: &BTreeMap<String, usize>,
        near: Option<&BTreeSet<u32>>,
        ended: &[&str],
    ) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
        let mut given = BTreeMap::new();
        for (resource, count) in wanted {
            let choice = self.inner.state.lock().ledger.choose(holder, (resource, *count), near, ended)?;
            let preferred = self.preferred(resource, &choice).await;
            given.insert(resource.clone(), choice.fill(&preferred));
        }
        let changed = {
            let mut state = self.inner.state.lock();
            let before = state.ledger.held(holder);
            state.ledger.give(holder, &given);
            before != state.ledger.held(holder)
        };
        if changed {
            self.write()?;
        }
        Ok(given)
    }

    /// What the plugin would choose; nothing where it does not say, or there is nothing to choose.
    async fn preferred(&self, resource: &str, choice: &Choice) -> Vec<String> {
        let endpoint = {
            let state = self.inner.state.lock();
            let plugin = state.plugins.get(resource).filter(|p| p.connected && p.prefers);
            plugin.map(|p| p.endpoint.clone())
        };
        let open = choice.missing > 0 && choice.missing < choice.pool.len();
        let Some(endpoint) = endpoint.filter(|_| open) else { return Vec::new() };
        let size = choice.must.len().saturating_add(choice.missing);
        let asked = ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.must.iter().chain(&choice.pool).cloned().collect(),
            must_include_device_i_ds: choice.must.iter().cloned().collect(),
            allocation_size: i32::try_from(size).unwrap_or(i32::MAX),
        };
        let mut request = Request::new(PreferredAllocationRequest { container_requests: vec![asked] });
        request.set_timeout(CALL);
        match self.client(&endpoint).get_preferred_allocation(request).await {
            Ok(answer) => {
                let first = answer.into_inner().container_responses.into_iter().next();
                first.map(|one| one.device_i_ds).unwrap_or_default()
            }
            Err(status) => {
                tracing::warn!(
                    resource,
                    message = status.message(),
                    "a device plugin does not say what it prefers"
                );
                Vec::new()
            }
        }
    }

    /// Takes back what pods have that are not in `alive` (uids).
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn retain(&self, alive: impl Fn(&str) -> bool) -> Result<(), Error> {
        let freed = self.inner.state.lock().ledger.retain(alive);
        if freed { self.write() } else { Ok(()) }
    }

    fn write(&self) -> Result<(), Error> {
        let ledger = self.inner.state.lock().ledger.clone();
        let path = &self.inner.checkpoint;
        checkpoint::write(path, &ledger).map_err(|source| Error::Checkpoint { path: path.clone(), source })
    }

    fn client(&self, endpoint: &str) -> DevicePluginClient<tonic::transport::Channel> {
        DevicePluginClient::new(channel(self.inner.directory.join(endpoint)))
    }

    async fn ask(&self, resource: &str, ids: &BTreeSet<String>) -> Result<ContainerAllocateResponse, Error> {
        let (endpoint, pre_start) = {
            let state = self.inner.state.lock();
            let plugin = state.plugins.get(resource).filter(|p| p.connected);
            let plugin = plugin.ok_or_else(|| Error::NoPlugin(resource.to_owned()))?;
            (plugin.endpoint.clone(), plugin.pre_start)
        };
        let refused = |status| Error::Plugin(Box::new(status));
        let mut client = self.client(&endpoint);
        let ids: Vec<String> = ids.iter().cloned().collect();
        let containers = vec![ContainerAllocateRequest { devices_ids: ids.clone() }];
        let mut request = Request::new(AllocateRequest { container_requests: containers });
        request.set_timeout(CALL);
        let answer = client.allocate(request).await.map_err(refused)?.into_inner();
        if pre_start {
            let mut request = Request::new(PreStartContainerRequest { devices_ids: ids });
            request.set_timeout(CALL);
            client.pre_start_container(request).await.map_err(refused)?;
        }
        Ok(answer.container_responses.into_iter().next().unwrap_or_default())
    }

    async fn follow(self, resource: String, endpoint: String, generation: u64) {
        let mut client = self.client(&endpoint).max_decoding_message_size(16 << 20);
        let lists = match client.list_and_watch(Empty {}).await {
            Ok(lists) => Some(lists.into_inner()),
            Err(status) => {
                tracing::warn!(
                    resource,
                    message = status.message(),
                    "a device plugin does not list its devices"
                );
                None
            }
        };
        if let Some(mut lists) = lists {
            while let Ok(Some(list)) = lists.message().await {
                let devices = list.devices.into_iter().take(MAX_DEVICES);
                let devices: BTreeMap<String, Known> = devices.map(known).collect();
                let mut state = self.inner.state.lock();
                let Some(plugin) = state.plugins.get_mut(&resource) else { return };
                if plugin.generation != generation {
                    return;
                }
                plugin.connected = true;
                tracing::info!(resource, devices = devices.len(), "devices of a plugin");
                state.ledger.set_devices(&resource, devices);
                drop(state);
                self.inner.changed.notify_one();
            }
        }
        let mut state = self.inner.state.lock();
        if let Some(plugin) = state.plugins.get_mut(&resource)
            && plugin.generation == generation
        {
            tracing::warn!(resource, "the device plugin is gone: none of its devices can be given out");
            plugin.connected = false;
            drop(state);
            self.inner.changed.notify_one();
        }
    }
}

fn known(device: Device) -> (String, Known) {
    let nodes = device.topology.into_iter().flat_map(|t| t.nodes);
    let nodes = nodes.filter_map(|node| u32::try_from(node.id).ok()).collect();
    (device.id, Known { healthy: device.health == HEALTHY, nodes })
}

/// Adds what one plugin gives to what others gave.
fn merge(all: &mut ContainerAllocateResponse, one: ContainerAllocateResponse) {
    all.envs.extend(one.envs);
    all.mounts.extend(one.mounts);
    all.devices.extend(one.devices);
    all.cdi_devices.extend(one.cdi_devices);
    for (key, value) in one.annotations {
        // Two plugins may grant capabilities: both hold.
        let entry = all.annotations.entry(key).or_default();
        *entry = if entry.is_empty() { value } else { format!("{entry},{value}") };
    }
}

#[cfg(test)]
mod tests;
