//! Linux containers and the pods that hold them: what of the CRI service goes to the OCI runtime and the pod network.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_cri_api::{annotation, v1};
use coracle_images::ImageRecord;
use coracle_oci::engine::{Container, Engine, Pod, Settings};
use coracle_oci::network::{self, Bridge, Subnet};
use coracle_wasm::protocol::State as Life;
use oci_spec::image::ImageConfiguration;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::Status;

use crate::address::Range;
use crate::record::{ContainerRecord, SandboxRecord, lost};
use crate::service::Service;

/// Profile `routed`: what it needs to be told.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Addresses of all pods of the cluster, such as `10.244.0.0/16`: traffic to elsewhere gets the node's own address.
    pub cluster_cidr: String,
    /// A folder of CNI configurations.
    pub cni_conf_dir: Option<PathBuf>,
    /// The OCI runtime: a program on the PATH, or a path.
    pub oci_runtime: PathBuf,
    /// Starts a shim when the container's folder is appended: `[self, "oci-shim"]`.
    pub shim_command: Vec<std::ffi::OsString>,
    /// Folders of CDI specifications besides the usual ones.
    pub cdi_dirs: Vec<PathBuf>,
}

/// What a refusal of Linux containers says in profile `loopback`.
const LOOPBACK: &str = "Linux containers need --network routed";

/// Linux containers, where they can be run.
pub enum Linux {
    /// Profile `loopback`.
    Off,
    /// Profile `routed`.
    On(Box<Node>),
}

/// Ends of containers, as the engine tells them.
pub type Ends = UnboundedReceiver<(String, coracle_oci::State)>;

/// The node in profile `routed`.
pub struct Node {
    /// Why there are no Linux containers, in words; wasm pods have their addresses all the same.
    engine: Result<Engine, String>,
    cluster: Subnet,
    /// What a CNI configuration says; it is not changed by UpdateRuntimeConfig.
    fixed: Option<Bridge>,
    bridge: tokio::sync::Mutex<Option<Arc<Bridge>>>,
    /// Why the bridge could not be made.
    trouble: Mutex<Option<String>>,
}

fn internal(error: anyhow::Error) -> Status {
    Status::internal(format!("{error:#}"))
}

impl Linux {
    /// Finds the OCI runtime and reads the CNI configuration.
    pub async fn open(
        routed: Option<&Routed>,
        state_dir: &std::path::Path,
    ) -> anyhow::Result<(Self, Option<Ends>)> {
        let Some(routed) = routed else { return Ok((Self::Off, None)) };
        let cluster = routed.cluster_cidr.parse().map_err(|e: String| anyhow::anyhow!(e))?;
        let fixed = match &routed.cni_conf_dir {
            Some(dir) => coracle_oci::cni::load(dir)?,
            None => None,
        };
        let settings = Settings {
            dir: state_dir.join("oci"),
            runtime: routed.oci_runtime.clone(),
            shim_command: routed.shim_command.clone(),
            cdi_dirs: routed.cdi_dirs.clone(),
        };
        let (engine, ends) = match Engine::open(settings).await {
            Ok((engine, ends)) => (Ok(engine), Some(ends)),
            Err(error) => {
                let words = format!("{error:#}");
                tracing::error!("Linux containers cannot be run: {words}");
                (Err(words), None)
            }
        };
        let (bridge, trouble) = Default::default();
        Ok((Self::On(Box::new(Node { engine, cluster, fixed, bridge, trouble })), ends))
    }

    /// The node, in profile `routed`.
    pub fn node(&self) -> Option<&Node> {
        match self {
            Self::Off => None,
            Self::On(node) => Some(node),
        }
    }

    /// The engine, or why there is none.
    pub fn engine(&self) -> Result<&Engine, Status> {
        match self {
            Self::Off => Err(Status::failed_precondition(LOOPBACK)),
            Self::On(node) => match &node.engine {
                Ok(engine) => Ok(engine),
                Err(words) => Err(Status::failed_precondition(words.clone())),
            },
        }
    }

    /// Whether a sandbox needs a network namespace. Without a hint, one of another handler than `wasm` may get Linux
    /// containers.
    pub fn wants_namespace(&self, config: &v1::PodSandboxConfig, handler: &str) -> Result<bool, Status> {
        let hint = config.annotations.get(annotation::LINUX_CONTAINERS).map(String::as_str);
        let asked = handler == "runc" || hint == Some("true");
        match self {
            Self::Off if asked => Err(Status::failed_precondition(LOOPBACK)),
            Self::Off => Ok(false),
            Self::On(_) => Ok(asked || (handler.is_empty() && hint != Some("false"))),
        }
    }
}

impl Node {
    /// The bridge of this range, made if it is not there.
    pub async fn bridge(&self, range: Option<Range>) -> Result<Arc<Bridge>, Status> {
        let range = range.ok_or_else(|| {
            Status::failed_precondition(
                "no pod range is set yet: it comes with UpdateRuntimeConfig or --pod-cidr",
            )
        })?;
        let wanted = match &self.fixed {
            Some(bridge) => bridge.clone(),
            None => {
                let subnet: Subnet = range.to_string().parse().map_err(Status::internal)?;
                Bridge::of_node(subnet, self.cluster)
            }
        };
        let mut held = self.bridge.lock().await;
        if let Some(bridge) = held.as_ref().filter(|b| ***b == wanted) {
            return Ok(bridge.clone());
        }
        let made = network::set_up(&wanted).await;
        *self.trouble.lock() = made.as_ref().err().map(|e| format!("{e:#}"));
        made.map_err(internal)?;
        let bridge = Arc::new(wanted);
        *held = Some(bridge.clone());
        Ok(bridge)
    }

    /// The range that a CNI configuration fixes.
    pub fn fixed_range(&self) -> Option<String> {
        self.fixed.as_ref().map(|bridge| bridge.subnet.to_string())
    }

    /// The bridge's address that a CNI configuration fixes: no pod's.
    pub fn fixed_gateway(&self) -> Option<Ipv4Addr> {
        self.fixed.as_ref().map(|bridge| bridge.gateway)
    }

    /// Why pods have no network, if so.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

/// The engine's words in the wasm host's, which the records use.
pub fn life(state: coracle_oci::State) -> Life {
    match state {
        coracle_oci::State::Created => Life::Created,
        coracle_oci::State::Running { started_at_ns } => Life::Running { started_at_ns },
        coracle_oci::State::Exited { started_at_ns, finished_at_ns, exit_code, reason, message } => {
            Life::Exited { started_at_ns, finished_at_ns, exit_code, reason, message }
        }
    }
}

/// The host name that the pod's config asks for.
pub fn hostname(config: &v1::PodSandboxConfig) -> String {
    let name = config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
    if config.hostname.is_empty() { name } else { config.hostname.clone() }
}

impl Service {
    /// Gives a sandbox its network: namespaces and a cable, or a local address.
    pub async fn connect(&self, record: &SandboxRecord) -> Result<(), Status> {
        let Some(node) = self.linux.node() else { return Ok(()) };
        if !record.linux {
            let bridge = node.bridge(self.state.range()).await?;
            return network::add_local(&bridge, record.ip).await.map_err(internal);
        }
        let engine = self.linux.engine()?;
        let address = (!record.host_network).then_some(record.ip);
        let hostname = hostname(&record.config);
        let pod = Pod { id: &record.id, config: &record.config, hostname: &hostname, address };
        engine.make_pod(pod).await.map_err(internal)?;
        if let Some(address) = address {
            let bridge = node.bridge(self.state.range()).await?;
            let netns = engine.netns(&record.id);
            network::unplug(&record.id).await.map_err(internal)?;
            network::plug(&bridge, &record.id, &netns, address).await.map_err(internal)?;
        }
        Ok(())
    }

    /// Takes a sandbox's network away; its namespaces stay until it is removed. Again is fine.
    pub async fn disconnect(&self, record: &SandboxRecord) -> Result<(), Status> {
        let Some(node) = self.linux.node() else { return Ok(()) };
        if record.linux {
            return network::unplug(&record.id).await.map_err(internal);
        }
        match node.bridge(self.state.range()).await {
            Ok(bridge) => network::remove_local(&bridge, record.ip).await.map_err(internal),
            // Without a range there was never an address.
            Err(_) => Ok(()),
        }
    }

    /// The file of a sandbox's network namespace, if it has one.
    pub fn netns(&self, record: &SandboxRecord) -> Option<PathBuf> {
        let engine = self.linux.engine().ok().filter(|_| record.linux && !record.host_network)?;
        Some(engine.netns(&record.id))
    }

    /// Makes a Linux container.
    pub async fn create_linux(
        &self,
        record: &ContainerRecord,
        config: &v1::ContainerConfig,
        sandbox: &SandboxRecord,
        image: &ImageRecord,
    ) -> Result<(), Status> {
        let engine = self.linux.engine()?;
        if !sandbox.linux {
            return Err(Status::failed_precondition(format!(
                "sandbox {} was made for wasm containers only, and the image of container {} is a Linux image",
                sandbox.id,
                record.name()
            )));
        }
        let settings = self.configuration(image)?;
        let (store, of) = (self.images.store().clone(), image.clone());
        let layers = tokio::task::spawn_blocking(move || store.unpacked(&of)).await;
        let layers = layers.map_err(|e| Status::internal(e.to_string()))?.map_err(crate::images::status)?;
        let container = Container {
            id: &record.id,
            sandbox_id: &sandbox.id,
            config,
            sandbox: &sandbox.config,
            image: &settings,
            layers,
            log_path: Some(record.log_path.clone()),
        };
        engine.create(container).await.map_err(|e| {
            let words = format!("container {}: {e:#}", record.name());
            match e.downcast_ref::<coracle_oci::bundle::Error>() {
                Some(_) => Status::invalid_argument(words),
                None => Status::internal(words),
            }
        })
    }

    /// What a Linux image says of itself.
    pub fn configuration(&self, image: &ImageRecord) -> Result<ImageConfiguration, Status> {
        let bytes = self.images.store().read(&image.config).map_err(crate::images::status)?;
        serde_json::from_slice(&bytes).map_err(|e| {
            Status::invalid_argument(format!("the configuration of image {} cannot be read: {e}", image.id))
        })
    }

    /// Stops a Linux container and learns how it ended.
    pub async fn stop_linux(&self, record: &ContainerRecord, grace: Duration) -> Result<(), Status> {
        if matches!(record.state, Life::Exited { .. }) {
            return Ok(());
        }
        let ended = self.linux.engine()?.stop(&record.id, &record.stop_signal, grace).await;
        self.observe(&record.id, life(ended.map_err(internal)?)).await
    }

    /// Brings records and what runs together after a start: adopts containers, makes networks that are gone.
    pub async fn reconcile_linux(&self) {
        let Some(node) = self.linux.node() else { return };
        let (sandboxes, containers) = self.state.snapshot();
        if let Some(range) = self.state.range()
            && let Err(error) = node.bridge(Some(range)).await
        {
            tracing::error!("making the pods' bridge: {}", error.message());
        }
        let engine = self.linux.engine().ok();
        for record in &containers {
            if !record.linux {
                continue;
            }
            let found = match engine {
                Some(engine) => engine.adopt(&record.id).await,
                None => None,
            };
            let started_at_ns = match record.state {
                Life::Running { started_at_ns } => started_at_ns,
                _ => 0,
            };
            let now = found.map_or_else(|| lost(started_at_ns, 255, "its files are gone"), life);
            if let Err(error) = self.observe(&record.id, now).await {
                tracing::error!(container = record.id, "adopting a container: {}", error.message());
            }
        }
        for record in sandboxes.iter().filter(|s| s.ready) {
            let there = engine.is_some_and(|e| e.has_pod(&record.id));
            if (!record.linux || !there)
                && let Err(error) = self.connect(record).await
            {
                tracing::error!(sandbox = record.id, "making a pod's network again: {}", error.message());
            }
        }
        let Some(engine) = engine else { return };
        for id in engine.containers().into_iter().filter(|id| !containers.iter().any(|c| c.id == *id)) {
            tracing::info!(container = id, "removing a container that nobody remembers");
            if let Err(error) = engine.remove(&id).await {
                tracing::error!(container = id, "removing it: {error:#}");
            }
        }
        for id in engine.pods().into_iter().filter(|id| !sandboxes.iter().any(|s| s.id == *id)) {
            let _ = network::unplug(&id).await;
            if let Err(error) = engine.remove_pod(&id).await {
                tracing::error!(sandbox = id, "removing a pod that nobody remembers: {error:#}");
            }
        }
    }

    /// Learns how Linux containers end, for as long as the service lives.
    pub async fn follow_linux(self: Arc<Self>, mut ends: Ends) {
        while let Some((id, state)) = ends.recv().await {
            if let Err(error) = self.observe(&id, life(state)).await {
                tracing::error!(container = id, "recording the end of a container: {}", error.message());
            }
        }
    }

    /// Removes what is left of a sandbox on the host; again is fine.
    pub async fn remove_linux_pod(
        &self,
        record: &SandboxRecord,
        containers: &[ContainerRecord],
    ) -> Result<(), Status> {
        if !record.linux {
            return Ok(());
        }
        let engine = self.linux.engine()?;
        for container in containers.iter().filter(|c| c.linux) {
            engine.remove(&container.id).await.map_err(internal)?;
        }
        engine.remove_pod(&record.id).await.map_err(internal)
    }

    /// Folders of layers that are still needed stay; others go.
    pub fn sweep_layers(&self) {
        let in_use = self.linux.engine().map(Engine::layers_in_use).unwrap_or_default();
        if let Err(error) = self.images.store().sweep_unpacked(&in_use) {
            tracing::warn!("removing layers that nobody uses: {error}");
        }
    }
}

/// The address of a sandbox that is on the host's network.
pub const NO_ADDRESS: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
