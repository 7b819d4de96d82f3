//! Serving: one service a state folder, on a unix socket that only its owner can open.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use coracle_cri_api::MAX_MESSAGE_BYTES;
use coracle_cri_api::network::service_table_server::ServiceTableServer;
use coracle_cri_api::v1::image_service_server::ImageServiceServer;
use coracle_cri_api::v1::runtime_service_server::RuntimeServiceServer;
use coracle_images::{Puller, RegistryConfig, Store};
use coracle_wasm::engine::engine_fingerprint;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::compile::Compiler;
use crate::host;
use crate::journal::Journal;
use crate::linux::{Linux, Routed};
use crate::rpc::{Kept, Rpc};
use crate::service::Service;
use crate::state::{FOLDERS, State};

/// The longest path of a unix socket, in bytes.
const MAX_SOCKET_PATH: usize = 107;
/// What calls under way get to end, once the service is told to stop.
const DRAIN: Duration = Duration::from_secs(2);
/// What containers get when their host is ended.
const HOST_GRACE: Duration = Duration::from_secs(10);

/// Calls that a client may give up before they were looked at; with more its connection ends, and with it all that is under way.
/// A node with thousands of pods gives up many at once.
const MOST_GIVEN_UP: usize = 10_000;

/// How the CRI service runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The socket to serve on (mode 0600); a stale one is replaced.
    pub socket: PathBuf,
    /// Records, images, code and the host's own files; made with mode 0700.
    pub state_dir: PathBuf,
    /// Where images come from.
    pub registries: RegistryConfig,
    /// Starts a wasm host when `--socket S --state-dir D` is appended: `[self, "wasm-host"]`.
    pub wasm_host_command: Vec<OsString>,
    /// Memory mappings beyond which a host process gets no more pods; `None`: three quarters of what the kernel allows.
    pub host_mappings: Option<u64>,
    /// Compiles when `<component> <code>` is appended (see [`crate::compile::child_main`]): `[self, "compile-wasm"]`.
    pub compile_command: Vec<OsString>,
    /// Addresses of pods until UpdateRuntimeConfig brings other ones, such as `127.64.0.0/18`; empty: none until then.
    pub pod_cidr: String,
    /// Profile `routed`; `None` is `loopback`.
    pub routed: Option<Routed>,
}

/// Serves until cancelled. An error at once means that nothing was begun: the folder is in use, or cannot be used.
///
/// The wasm host and its pods live on, to be adopted by the next service; [`end_hosts`] ends them.
pub async fn serve(mut options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    make_dir(&options.state_dir)?;
    options.state_dir = options
        .state_dir
        .canonicalize()
        .with_context(|| format!("finding {}", options.state_dir.display()))?;
    let _lock = lock(&options.state_dir)?;
    let (linux, ends) = Linux::open(options.routed.as_ref(), &options.state_dir).await?;
    let service = Arc::new(open(&options, linux)?);
    let listener = bind(&options.socket)?;
    service.reconcile_linux().await;
    service.sweep_code();
    let backend = Arc::new(crate::streaming::Streams(service.clone()));
    let streaming = coracle_streaming::Server::start(backend, stop.clone()).await;
    let _ = service.streaming.set(streaming.context("starting the streaming server")?);
    if let Some(ends) = ends {
        tokio::spawn(service.clone().follow_linux(ends));
    }

    let settings = host::Settings {
        state_dir: options.state_dir.clone(),
        command: options.wasm_host_command.clone(),
        group: None,
    };
    service.adopt_isolated(settings.clone(), options.host_mappings).await;
    let supervision = CancellationToken::new();
    let supervisor =
        tokio::spawn(service.host.clone().supervise(settings, service.clone(), supervision.clone()));

    tracing::info!(socket = %options.socket.display(), "CRI service serves");
    let result = answer_calls(listener, &service, &stop).await;
    supervision.cancel();
    let _ = supervisor.await;
    service.isolated.let_go().await;
    if let (Some(node), true) = (service.linux.node(), service.state.snapshot().0.is_empty()) {
        node.let_go().await;
    }
    let _ = std::fs::remove_file(&options.socket);
    result
}

async fn answer_calls(
    listener: UnixListener,
    service: &Arc<Service>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let rpc = Rpc(service.clone());
    let server = tonic::transport::Server::builder()
        .http2_max_pending_accept_reset_streams(Some(MOST_GIVEN_UP))
        .add_service(RuntimeServiceServer::new(rpc.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ImageServiceServer::new(rpc.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ServiceTableServer::new(rpc).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled());
    tokio::pin!(server);
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        result = &mut server => result.context("serving CRI"),
        // Streams (events, tables) have no end of their own.
        () = stopped => Ok(()),
    }
}

/// Stops every container within 10 s and ends the wasm hosts of this state folder. Fine when none lives. The service must
/// have ended before, or it starts a host anew.
pub async fn end_hosts(state_dir: &Path) -> anyhow::Result<()> {
    let folders = crate::isolated::folders(state_dir);
    let isolated = folders.iter().map(|dir| host::shutdown(dir, HOST_GRACE));
    let (shared, isolated) =
        tokio::join!(host::shutdown(state_dir, HOST_GRACE), futures::future::join_all(isolated));
    isolated.into_iter().fold(shared, Result::and)
}

fn open(options: &Options, linux: Linux) -> anyhow::Result<Service> {
    let journal = Journal::open(&options.state_dir, &FOLDERS)?;
    let state = State::load(journal.clone())?;
    let kept = std::fs::read(options.state_dir.join("runtime.json")).ok();
    let kept = kept.and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok()).map(|k| k.pod_cidr);
    let fixed = linux.node().and_then(crate::linux::Node::fixed_range);
    if let Some(gateway) = linux.node().and_then(crate::linux::Node::fixed_gateway) {
        state.withhold(gateway);
    }
    let cidr = fixed.or(kept).unwrap_or_else(|| options.pod_cidr.clone());
    if !cidr.is_empty() {
        state.set_range(cidr.parse()?);
    }
    let images = Store::open(&options.state_dir.join("images"))?;
    let puller = Puller::new(Arc::new(images), options.registries.clone());
    let compiler =
        Compiler::open(&options.state_dir.join("compiled"), &engine_fingerprint(), &options.compile_command)?;
    Ok(Service::new(state, linux, puller, compiler, journal))
}

/// Makes a folder that only its owner may look into, and what leads there.
pub(crate) fn make_dir(dir: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("creating {}", dir.display()))
}

/// Two services over one folder would undo each other's work.
fn lock(state_dir: &Path) -> anyhow::Result<File> {
    let path = state_dir.join("cri.lock");
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    file.try_lock()
        .with_context(|| format!("the state folder {} is in use by another runtime", state_dir.display()))?;
    Ok(file)
}

fn bind(socket: &Path) -> anyhow::Result<UnixListener> {
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        anyhow::bail!("the socket path {} is longer than {MAX_SOCKET_PATH} bytes", socket.display());
    }
    if let Some(dir) = socket.parent().filter(|d| !d.as_os_str().is_empty()) {
        make_dir(dir)?;
    }
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        anyhow::bail!("another process serves {}", socket.display());
    }
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the stale {}", socket.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to others", socket.display()))?;
    Ok(listener)
}
