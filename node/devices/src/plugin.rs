//! Serves a list of devices as a device plugin, and registers again whenever the agent was restarted.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status};

use crate::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use crate::v1beta1::registration_client::RegistrationClient;
use crate::v1beta1::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, ContainerPreferredAllocationRequest,
    ContainerPreferredAllocationResponse, Device, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, RegisterRequest,
};
use crate::{KUBELET_SOCKET, VERSION};

/// How often the agent's socket is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Turns ids of devices into what a container gets.
pub trait Describe: Send + Sync + 'static {
    /// What a container gets that has these devices to itself.
    ///
    /// # Errors
    /// Words, where an id is unknown.
    fn describe(&self, ids: &[String]) -> Result<ContainerAllocateResponse, String>;

    /// Which devices it would rather give out.
    fn preference(&self) -> Option<&dyn Prefer> {
        None
    }
}

/// Says which devices go well together.
pub trait Prefer: Send + Sync {
    /// So many of the available ones, with all that must be among them.
    fn choose(&self, available: &[String], must: &[String], size: usize) -> Vec<String>;
}

struct Service<D> {
    devices: watch::Receiver<Vec<Device>>,
    describe: D,
    shutdown: CancellationToken,
}

#[tonic::async_trait]
impl<D: Describe> DevicePlugin for Service<D> {
    type ListAndWatchStream = Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(abilities(&self.describe)))
    }

    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.devices.clone());
        let lists = lists.map(|devices| Ok(ListAndWatchResponse { devices }));
        Ok(Response::new(Box::pin(lists.take_until(self.shutdown.clone().cancelled_owned()))))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        let prefer = self.describe.preference();
        let prefer =
            prefer.ok_or_else(|| Status::unimplemented("this plugin prefers no device over another"))?;
        let choose = |one: ContainerPreferredAllocationRequest| ContainerPreferredAllocationResponse {
            device_i_ds: prefer.choose(
                &one.available_device_i_ds,
                &one.must_include_device_i_ds,
                usize::try_from(one.allocation_size).unwrap_or(0),
            ),
        };
        let container_responses = request.into_inner().container_requests.into_iter().map(choose).collect();
        Ok(Response::new(PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            container_responses
                .push(self.describe.describe(&container.devices_ids).map_err(Status::not_found)?);
        }
        Ok(Response::new(AllocateResponse { container_responses }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}

fn abilities(describe: &impl Describe) -> DevicePluginOptions {
    DevicePluginOptions {
        get_preferred_allocation_available: describe.preference().is_some(),
        ..Default::default()
    }
}

/// A plugin that is to be served.
pub struct Options {
    /// The kubelet's plugin directory.
    pub directory: PathBuf,
    /// The name of the plugin's own socket in it.
    pub socket: String,
    /// The name of the resource.
    pub resource: String,
}

/// A channel to a socket that connects on first use.
pub(crate) fn channel(path: PathBuf) -> Channel {
    // The URI is never resolved: the connector opens the socket.
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://plugin.localhost")
        .connect_timeout(Duration::from_secs(5))
        .connect_with_connector_lazy(connector)
}

/// Binds a socket in place of one that an earlier process left.
pub(crate) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Serves until `shutdown`. A directory that does not exist yet is waited for.
///
/// # Errors
/// When the socket cannot be made.
pub async fn run<D: Describe>(
    options: Options,
    devices: watch::Receiver<Vec<Device>>,
    describe: D,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    std::fs::create_dir_all(&options.directory)?;
    let listener = listen(&options.directory.join(&options.socket))?;
    let abilities = abilities(&describe);
    let service = DevicePluginServer::new(Service { devices, describe, shutdown: shutdown.clone() });
    let serve = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    tokio::select! {
        served = serve => served.map_err(std::io::Error::other),
        () = keep_registered(&options, abilities) => Ok(()),
        () = shutdown.cancelled() => Ok(()),
    }
}

/// Registers whenever the agent's socket is a new one. Never ends.
async fn keep_registered(options: &Options, abilities: DevicePluginOptions) {
    let path = options.directory.join(KUBELET_SOCKET);
    let mut known = None;
    let mut said = false;
    loop {
        let now = identity(&path);
        if now.is_some() && now != known {
            match register(options, abilities, &path).await {
                Ok(()) => {
                    tracing::info!(resource = options.resource, "registered with the node agent");
                    (known, said) = (now, false);
                }
                Err(error) if !said => {
                    tracing::warn!(%error, resource = options.resource, "the node agent did not register the plugin; it will be tried again");
                    said = true;
                }
                Err(_) => {}
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells one socket from the next of the same name.
fn identity(path: &Path) -> Option<(u64, std::time::SystemTime)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.modified().ok()?))
}

async fn register(options: &Options, abilities: DevicePluginOptions, agent: &Path) -> Result<(), Status> {
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint: options.socket.clone(),
        resource_name: options.resource.clone(),
        options: Some(abilities),
    };
    let mut request = Request::new(request);
    request.set_timeout(Duration::from_secs(10));
    RegistrationClient::new(channel(agent.to_owned())).register(request).await.map(drop)
}
