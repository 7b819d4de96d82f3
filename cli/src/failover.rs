//! A client that goes on at another server of the cluster when the one that it talks to is lost.
//!
//! It starts with the server of its kubeconfig and learns of the others from the endpoints of the Service `kubernetes`, which
//! it keeps in a file, so that it can start while the first one is away.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::client::ConfigExt;
use kube::{Api, Client};
use parking_lot::RwLock;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::{BoxError, ServiceBuilder};

use crate::kubeconfig::write_secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a server may take to say whether it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(3);
/// HTTP/2, as TLS names it.
const HTTP_2: &[u8] = b"h2";
/// What may be on its way of one answer, and of all: as much as client-go lets be, so that no watch holds up another.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 1 << 30;
/// After so long without an answer from the host a connection is given up.
const DEAD_AFTER: Duration = Duration::from_secs(10);
/// How often it is asked which servers there are.
const REFRESH: Duration = Duration::from_secs(20);
const MAX_SERVERS: usize = 64;

/// `host` and port of a server.
type Server = (String, u16);

struct Servers {
    known: RwLock<Vec<Server>>,
    /// The one that was reached last.
    current: AtomicUsize,
    /// Offers HTTP/2.
    tls: TlsConnector,
    /// Offers nothing, and so speaks HTTP/1.1.
    plain: TlsConnector,
}

/// A client of the kubeconfig's cluster. `memory`: where the servers that it learns of are kept.
///
/// # Errors
/// The kubeconfig names no server, or credentials that cannot be used.
pub async fn client(config: kube::Config, memory: Option<PathBuf>) -> Result<Client> {
    let url = &config.cluster_url;
    let host = url.host().context("the kubeconfig's server has no host")?.trim_matches(['[', ']']);
    let first = (host.to_owned(), url.port_u16().unwrap_or(443));
    if url.scheme_str() != Some("https") || config.tls_server_name.is_some() {
        // A way of its own leads there.
        return Ok(Client::try_from(config)?);
    }
    let mut known = vec![first.clone()];
    if let Some(text) = memory.as_ref().and_then(|path| std::fs::read_to_string(path).ok()) {
        known.extend(text.lines().filter_map(parse).filter(|server| *server != first));
    }
    known.truncate(MAX_SERVERS);
    let mut tls = config.rustls_client_config()?;
    let plain = TlsConnector::from(Arc::new(tls.clone()));
    tls.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
    let tls = TlsConnector::from(Arc::new(tls));
    let servers = Arc::new(Servers { known: RwLock::new(known), current: AtomicUsize::new(0), tls, plain });
    let connector = tower::service_fn({
        let servers = servers.clone();
        move |_: http::Uri| Box::pin(connect(servers.clone()))
    });
    // One connection, however many requests run at once: each of their own would cost a handshake, and memory on both sides.
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(DEAD_AFTER)
        .http2_keep_alive_timeout(DEAD_AFTER)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(http);
    let client = Client::new(service, config.default_namespace.clone());
    tokio::spawn(learn(servers, client.clone(), first, memory));
    Ok(client)
}

fn parse(line: &str) -> Option<Server> {
    let (host, port) = line.trim().rsplit_once(' ')?;
    Some((host.to_owned(), port.parse().ok()?))
}

/// Connects to the server that was reached last, or to the next that is ready: one that lives and has lost touch with the
/// others is not. Where none is ready, the first that can be reached says what is wrong.
async fn connect(servers: Arc<Servers>) -> io::Result<Stream> {
    let known = servers.known.read().clone();
    let start = servers.current.load(Ordering::Relaxed);
    let mut last = io::Error::other("no server is known");
    let mut unready = None;
    for turn in 0..known.len() {
        let index = (start + turn) % known.len();
        let Some(server) = known.get(index) else { continue };
        let asked = async {
            // A single server is used as it is.
            let ready =
                known.len() == 1 || within(READY_TIMEOUT, server, is_ready(server, &servers.plain)).await?;
            let stream = within(CONNECT_TIMEOUT, server, reach(server, &servers.tls)).await?;
            Ok((ready, stream))
        };
        match asked.await {
            Ok((true, stream)) => {
                if servers.current.swap(index, Ordering::Relaxed) != index {
                    tracing::info!(host = server.0, port = server.1, "goes on at another server");
                }
                return Ok(Stream(TokioIo::new(stream)));
            }
            Ok((false, stream)) => drop(unready.get_or_insert(stream)),
            Err(error) => last = error,
        }
    }
    unready.map(|stream| Stream(TokioIo::new(stream))).ok_or(last)
}

async fn within<T>(
    bound: Duration,
    server: &Server,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let silent = |_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} does not answer", server.0)));
    tokio::time::timeout(bound, work).await.unwrap_or_else(silent)
}

/// Asks a server whether it is ready.
async fn is_ready(server: &Server, tls: &TlsConnector) -> io::Result<bool> {
    let stream = reach(server, tls).await?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(io::Error::other)?;
    let request = http::Request::get("/readyz").header(http::header::HOST, &server.0);
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    tokio::select! {
        answer = sender.send_request(request) => Ok(answer.map_err(io::Error::other)?.status().is_success()),
        ended = connection => Err(ended.map_or_else(io::Error::other, |()| io::ErrorKind::ConnectionReset.into())),
    }
}

async fn reach((host, port): &Server, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((host.as_str(), *port)).await?;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    let keepalive = socket2::TcpKeepalive::new().with_time(DEAD_AFTER / 2).with_interval(DEAD_AFTER / 5);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
    tls.connect(name, stream).await
}

/// Keeps the list of servers up to date.
async fn learn(servers: Arc<Servers>, client: Client, first: Server, memory: Option<PathBuf>) {
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    let params = ListParams::default().labels("kubernetes.io/service-name=kubernetes");
    loop {
        match slices.list(&params).await {
            Ok(found) => {
                let mut known = vec![first.clone()];
                known.extend(found.items.iter().flat_map(addresses).filter(|server| *server != first));
                known.truncate(MAX_SERVERS);
                let changed = *servers.known.read() != known;
                // The one in use stays in use.
                if changed {
                    let mut list = servers.known.write();
                    let used = list.get(servers.current.load(Ordering::Relaxed)).cloned();
                    let index = known.iter().position(|server| Some(server) == used.as_ref()).unwrap_or(0);
                    servers.current.store(index, Ordering::Relaxed);
                    list.clone_from(&known);
                }
                if let (true, Some(path)) = (changed, &memory) {
                    let text: String = known.iter().map(|(host, port)| format!("{host} {port}\n")).collect();
                    if let Err(error) = write_secret(path, &text) {
                        tracing::warn!(error = format!("{error:#}"), "the list of servers is not kept");
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "which servers there are"),
        }
        tokio::time::sleep(REFRESH).await;
    }
}

fn addresses(slice: &EndpointSlice) -> Vec<Server> {
    let ports = slice.ports.iter().flatten().filter_map(|port| u16::try_from(port.port?).ok());
    let hosts = || slice.endpoints.iter().flatten().flat_map(|endpoint| endpoint.addresses.iter().cloned());
    ports.flat_map(|port| hosts().map(move |host| (host, port))).collect()
}

/// A connection to some server.
struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        match self.0.inner().get_ref().1.alpn_protocol() {
            Some(HTTP_2) => connected.negotiated_h2(),
            _ => connected,
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
