//! Storage drivers of this node (CSI, version 1): they register by a socket in `plugins_registry`, as with a kubelet, and
//! make volumes available where the agent asks for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::RwLock;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tower::service_fn;

mod calls;
pub mod expand;
pub mod record;
pub mod registration;
pub mod usage;
pub mod volume;

/// The messages of drivers.
#[allow(clippy::all, missing_docs)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// The messages of registration.
#[allow(clippy::all, missing_docs)]
pub mod plugin {
    tonic::include_proto!("pluginregistration");
}

use v1::node_client::NodeClient;
use v1::node_service_capability::{Type, rpc};

/// How long a driver may take for one call.
const CALL: Duration = Duration::from_secs(120);
const CONNECT: Duration = Duration::from_secs(5);

/// A channel to a socket of this machine.
pub(crate) async fn connect(socket: &Path) -> Result<Channel, String> {
    let path: Arc<Path> = socket.into();
    let connect = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
    });
    // The address is for the messages only: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://plugin.invalid").connect_timeout(CONNECT).timeout(CALL);
    endpoint
        .connect_with_connector(connect)
        .await
        .map_err(|e| format!("connect to the driver at {}: {e}", socket.display()))
}

/// The drivers that have registered; cheap to clone.
#[derive(Clone, Default)]
pub struct Drivers {
    by_name: Arc<RwLock<BTreeMap<String, PathBuf>>>,
    turns: calls::Turns,
}

/// One driver, connected.
pub struct Driver {
    name: String,
    client: NodeClient<Channel>,
    /// Volumes are staged before they are published.
    stages: bool,
    /// The driver itself gives volumes to a group.
    groups: bool,
    /// It says how full volumes are.
    counts: bool,
    /// Its volumes have a part on the node that grows.
    expands: bool,
}

impl Drivers {
    fn set(&self, name: &str, endpoint: Option<PathBuf>) {
        let mut all = self.by_name.write();
        match endpoint {
            Some(endpoint) => all.insert(name.to_owned(), endpoint),
            None => all.remove(name),
        };
    }

    fn turns(&self) -> &calls::Turns {
        &self.turns
    }

    /// Whether any has registered.
    pub fn any(&self) -> bool {
        !self.by_name.read().is_empty()
    }

    /// The driver of that name.
    ///
    /// # Errors
    /// When it has not registered, or does not answer.
    pub async fn get(&self, name: &str) -> Result<Driver, String> {
        let endpoint = self.by_name.read().get(name).cloned();
        let endpoint = endpoint
            .ok_or_else(|| format!("driver name {name} not found in the list of registered CSI drivers"))?;
        let mut client = NodeClient::new(connect(&endpoint).await?);
        let answer = client.node_get_capabilities(Request::new(v1::NodeGetCapabilitiesRequest {})).await;
        let answer = answer.map_err(|e| words(name, &e))?.into_inner();
        let can = |wanted: rpc::Type| {
            answer
                .capabilities
                .iter()
                .any(|c| matches!(&c.r#type, Some(Type::Rpc(rpc)) if rpc.r#type() == wanted))
        };
        Ok(Driver {
            name: name.to_owned(),
            stages: can(rpc::Type::StageUnstageVolume),
            groups: can(rpc::Type::VolumeMountGroup),
            counts: can(rpc::Type::GetVolumeStats),
            expands: can(rpc::Type::ExpandVolume),
            client,
        })
    }
}

fn words(driver: &str, status: &Status) -> String {
    format!("CSI driver {driver}: rpc error: code = {:?} desc = {}", status.code(), status.message())
}
