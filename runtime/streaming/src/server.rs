//! The streaming server: CRI answers exec, attach and port-forward with a URL of it, which works once and not for long.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::streams::Near;
use crate::{channels, portforward};

/// How long a URL works that nobody has used.
const LIFETIME: Duration = Duration::from_secs(60);
/// The most URLs that wait to be used.
const MAX_WAITING: usize = 1000;
/// The longest message of a WebSocket, in bytes.
const MAX_MESSAGE: usize = 4 << 20;

/// What a URL stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// One more program in a container.
    Exec { container: String, command: Vec<String>, stdin: bool, stdout: bool, stderr: bool, tty: bool },
    /// The container's own program.
    Attach { container: String, stdin: bool, stdout: bool, stderr: bool, tty: bool },
    /// Ports of a pod; the protocol may name them itself.
    PortForward { sandbox: String, ports: Vec<u16> },
}

/// How a program ended; words are what could not be done.
pub type Ended = Result<i32, String>;

/// A connection to a port of a pod.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// A connection to a port of a pod, boxed.
pub type Dialled = Box<dyn Connection>;

/// What the server has others do.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs a program.
    async fn exec(&self, container: &str, command: Vec<String>, tty: bool, near: Near) -> Ended;
    /// Joins the container's own program; `Ok` with its exit code when it has ended.
    async fn attach(&self, container: &str, stdin: bool, near: Near) -> Ended;
    /// Connects to a port of a pod, as something inside it would.
    async fn connect(&self, sandbox: &str, port: u16) -> std::io::Result<Dialled>;
}

/// The server. Clones share it.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Instant, Call)>>,
    backend: Arc<dyn Backend>,
}

/// Too many URLs wait to be used.
#[derive(Debug, thiserror::Error)]
#[error("too many streaming calls wait for their clients")]
pub struct Full;

impl Server {
    /// Listens on a free port of 127.0.0.1 and serves until cancelled.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(backend: Arc<dyn Backend>, stop: CancellationToken) -> std::io::Result<Self> {
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { address, waiting: Mutex::default(), backend });
        let router = Router::new().route("/{verb}/{token}", any(answer)).with_state(shared.clone());
        tokio::spawn(async move {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
            if let Err(error) = served.await {
                tracing::error!(%error, "the streaming server ended");
            }
        });
        Ok(Self { shared })
    }

    /// A URL that does this, once.
    ///
    /// # Errors
    /// When too many wait already.
    pub fn url(&self, call: Call) -> Result<String, Full> {
        let verb = match call {
            Call::Exec { .. } => "exec",
            Call::Attach { .. } => "attach",
            Call::PortForward { .. } => "portforward",
        };
        let token = hex::encode(rand::random::<[u8; 16]>());
        let mut waiting = self.shared.waiting.lock();
        waiting.retain(|_, (since, _)| since.elapsed() < LIFETIME);
        if waiting.len() >= MAX_WAITING {
            return Err(Full);
        }
        let url = format!("http://{}/{verb}/{token}", self.shared.address);
        waiting.insert(token, (Instant::now(), call));
        Ok(url)
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    Path((_, token)): Path<(String, String)>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        // What kubectl says to fall back from: a WebSocket is the only way in.
        Err(refusal) => return refusal.into_response(),
    };
    let taken = shared.waiting.lock().remove(&token);
    let Some((_, call)) = taken.filter(|(since, _)| since.elapsed() < LIFETIME) else {
        return (StatusCode::NOT_FOUND, "this streaming URL was used already, or not in time\n")
            .into_response();
    };
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    let backend = shared.backend.clone();
    let protocols: &[&str] = match call {
        Call::PortForward { .. } => &portforward::PROTOCOLS,
        _ => &channels::PROTOCOLS,
    };
    let upgrade = upgrade.protocols(protocols.iter().copied());
    let Some(protocol) = upgrade.selected_protocol().and_then(|p| p.to_str().ok().map(str::to_owned)) else {
        let words = format!("the client speaks none of {protocols:?}\n");
        return (StatusCode::BAD_REQUEST, words).into_response();
    };
    upgrade.on_upgrade(move |socket| async move {
        match call {
            Call::PortForward { sandbox, ports } => {
                portforward::serve(socket, &protocol, backend, sandbox, ports).await;
            }
            call => channels::serve(socket, protocol == channels::PROTOCOLS[0], backend, call).await,
        }
    })
}
