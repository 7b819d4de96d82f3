//! Linux containers and the pods that hold them: what of the CRI service goes to the OCI runtime and the pod network.

mod service;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;

use coracle_cri_api::{annotation, v1};
use coracle_oci::engine::{Engine, Settings};
use coracle_oci::network::{self, Bridge, Subnet};
use coracle_wasm::protocol::State as Life;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;
use tonic::Status;

use crate::address::Range;

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
        if asked && handler == crate::isolated::HANDLER {
            return Err(Status::failed_precondition(
                "pods of handler wasm-isolated have wasm containers only",
            ));
        }
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

    /// Takes the bridge away, if it is this node's own, and its rules; the next pod has them made again. There is no pod.
    pub async fn let_go(&self) {
        if self.bridge.lock().await.take().is_none() {
            return;
        }
        let gone = match &self.fixed {
            Some(_) => network::forget().await,
            None => network::take_down().await,
        };
        if let Err(error) = gone {
            tracing::warn!("{error:#}");
        }
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

/// The address of a sandbox that is on the host's network.
pub const NO_ADDRESS: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
