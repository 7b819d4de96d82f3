//! wasi:http towards others: a guest's requests follow the Service table and leave from the pod's address.

mod socket;
mod tls;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri, uri::Scheme};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper_util::{
    client::legacy::{Builder, Client},
    rt::{TokioExecutor, TokioIo},
};
use parking_lot::Mutex;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::{
    network::{Hop, PodNetwork},
    protocol::{Mount, Transport},
    routes::Refusal,
};

/// How long a connection may take, and then the first byte of an answer, where the guest does not say.
const TIMEOUT: Duration = Duration::from_secs(60);

type Io = Box<dyn Future<Output = Result<(), Error>> + Send>;

/// The outgoing side of a pod; its connections are pooled and shared by its instances.
#[derive(Clone)]
pub(crate) struct Egress {
    network: Arc<PodNetwork>,
    /// The pools, and the policies' epoch that their connections were made in.
    pool: Arc<Mutex<(u64, Pools)>>,
    trust: Arc<tls::Trust>,
    /// Room for requests of the pod that are under way, both bodies included.
    room: Arc<Semaphore>,
    /// Over with the instance that asks.
    life: CancellationToken,
}

/// The most of them at once: each may be a connection, and so one of the host's descriptors.
const MAX_OUTGOING: usize = 512;

type Pool = Client<Connector, WasiBody>;

/// Connections of HTTP/1.1, and of HTTP/2 with prior knowledge for gRPC, which knows no other.
#[derive(Clone)]
struct Pools {
    usual: Pool,
    grpc: Pool,
}

fn pools(network: &Arc<PodNetwork>) -> Pools {
    let connector = Connector { network: network.clone(), led: true };
    let grpc = pooled().http2_only(true).build(connector.clone());
    Pools { usual: pooled().build(connector), grpc }
}

fn is_grpc(request: &Request<WasiBody>) -> bool {
    let kind = request.headers().get(http::header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn pooled() -> Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_idle_timeout(Duration::from_secs(15))
        .pool_max_idle_per_host(32)
        .pool_timer(hyper_util::rt::TokioTimer::new())
        .set_host(false);
    builder
}

impl Egress {
    /// The outgoing side of this pod.
    pub fn new(network: Arc<PodNetwork>) -> Egress {
        let pool = Arc::new(Mutex::new((network.policies_epoch(), pools(&network))));
        Egress {
            network,
            pool,
            trust: Arc::new(tls::Trust::new(&[])),
            room: Arc::new(Semaphore::new(MAX_OUTGOING)),
            life: CancellationToken::new(),
        }
    }

    /// The same for one instance: what runs on its behalf ends with this token.
    pub fn living(&self, life: CancellationToken) -> Egress {
        Egress { life, ..self.clone() }
    }

    /// The same for a container that has these mounts: they say whom it trusts.
    pub fn trusting(&self, mounts: &[Mount]) -> Egress {
        Egress { trust: Arc::new(tls::Trust::new(mounts)), ..self.clone() }
    }

    /// The connections that may be used now.
    fn pools(&self) -> Pools {
        let epoch = self.network.policies_epoch();
        let mut current = self.pool.lock();
        if current.0 != epoch {
            *current = (epoch, pools(&self.network));
        }
        current.1.clone()
    }
}

/// The body of a request, read to its end even where the transport puts it away: of a GET without a length it sends none,
/// and a guest that is about to write nothing would be told that its peer is gone. Its connection is there as long as it.
struct Kept(WasiBody, #[expect(dead_code, reason = "held")] Arc<OwnedSemaphorePermit>);

impl hyper::body::Body for Kept {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let mut rest = std::mem::take(&mut self.0);
        runtime.spawn(tokio::time::timeout(
            TIMEOUT,
            async move { while let Some(Ok(_)) = rest.frame().await {} },
        ));
    }
}

/// Where an authority leads: an address of the table or of the pod's network.
async fn resolve(network: &PodNetwork, uri: &Uri) -> Result<SocketAddr, Error> {
    let host = uri.host().ok_or(Error::HttpRequestUriInvalid)?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let found = network.resolve(bare).await;
    let unknown = Error::DnsError { rcode: Some("NXDOMAIN".into()), info_code: None };
    let ip = *found.get(crate::network::fastrand(found.len())).ok_or(unknown)?;
    let usual = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    Ok(SocketAddr::new(ip, uri.port_u16().unwrap_or(usual)))
}

impl WasiHttpHooks for Egress {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _done: Io,
    ) -> Box<dyn Future<Output = Result<(Response<WasiBody>, Io), Error>> + Send> {
        let egress = self.clone();
        Box::new(async move {
            let permit =
                egress.room.clone().try_acquire_owned().map_err(|_| Error::ConnectionLimitReached)?;
            // Until the end of both bodies: a connection may go on with either.
            let permit = Arc::new(permit);
            let request = request.map(|body| Kept(body, permit.clone()).boxed_unsync());
            let (response, io) = egress.send(request, options).await?;
            let held = move |frame| {
                let _ = &permit;
                frame
            };
            Ok((response.map(|body| body.map_frame(held).boxed_unsync()), io))
        })
    }
    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }
}

impl Egress {
    async fn send(
        &self,
        mut request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Result<(Response<WasiBody>, Io), Error> {
        let limit = options.and_then(|o| o.first_byte_timeout).unwrap_or(TIMEOUT);
        let wish = socket::wish(&mut request)?;
        if request.uri().scheme() == Some(&Scheme::HTTPS) {
            // The name stays: the peer's certificate must have it.
            let pool = self.trust.pool(&self.network)?;
            return self.answered(wish, tokio::time::timeout(limit, pool.request(request)).await);
        }
        let address = resolve(&self.network, request.uri()).await?;
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
        // The pool keys by where it leads: connections of before are of no use to who is led elsewhere now.
        let hop = self.network.connect(Transport::Tcp, address).map_err(|refusal| match refusal {
            Refusal::Denied | Refusal::Policy => Error::DestinationIpProhibited,
            Refusal::NoEndpoint => Error::ConnectionRefused,
        })?;
        *request.uri_mut() = Uri::builder()
            .scheme("http")
            .authority(hop.to.to_string())
            .path_and_query(path)
            .build()
            .map_err(|_| Error::HttpRequestUriInvalid)?;
        let Pools { usual, grpc } = self.pools();
        let pool = if is_grpc(&request) {
            // Clients say it, and servers of gRPC insist; a guest cannot, as it is of one hop.
            request.headers_mut().insert(http::header::TE, http::HeaderValue::from_static("trailers"));
            *request.version_mut() = http::Version::HTTP_2;
            grpc
        } else {
            usual
        };
        self.answered(wish, tokio::time::timeout(limit, pool.request(request)).await)
    }

    fn answered(
        &self,
        wish: Option<socket::Wish>,
        answer: Result<Answer, tokio::time::error::Elapsed>,
    ) -> Result<(Response<WasiBody>, Io), Error> {
        let response = answer.map_err(|_| Error::ConnectionReadTimeout)?.map_err(refused)?;
        if let Some(wish) = wish {
            return socket::opened(wish, response, self.life.clone());
        }
        let response = response.map(|body| body.map_err(Error::from).boxed_unsync());
        Ok((response, Box::new(async { Ok(()) })))
    }
}

type Answer = Result<Response<hyper::body::Incoming>, hyper_util::client::legacy::Error>;

/// A connection that failed, in the codes of wasi:http.
fn refused(error: hyper_util::client::legacy::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::PermissionDenied => Error::DestinationIpProhibited,
                io::ErrorKind::TimedOut => Error::ConnectionTimeout,
                io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
                _ => Error::ConnectionTerminated,
            };
        }
        cause = current.source();
    }
    Error::InternalError(Some(error.to_string()))
}

/// Opens connections as the pod.
#[derive(Clone)]
pub(crate) struct Connector {
    network: Arc<PodNetwork>,
    /// Its addresses are where [`PodNetwork::connect`] has led already.
    led: bool,
}

impl Connector {
    async fn open(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
        let to: SocketAddr = match authority.parse() {
            Ok(address) => address,
            Err(_) => resolve(&self.network, &uri).await.map_err(|_| {
                io::Error::new(io::ErrorKind::NotFound, format!("{authority} has no address"))
            })?,
        };
        let hop = match self.led {
            true => self.network.hop(to),
            false => self.network.connect(Transport::Tcp, to).map_err(|refusal| {
                let kind = match refusal {
                    Refusal::Denied | Refusal::Policy => io::ErrorKind::PermissionDenied,
                    Refusal::NoEndpoint => io::ErrorKind::ConnectionRefused,
                };
                io::Error::new(kind, refusal)
            })?,
        };
        let stream = tokio::time::timeout(TIMEOUT, dial_as(&self.network, hop)).await??;
        stream.set_nodelay(true)?;
        Ok(TokioIo::new(stream))
    }
}

/// Connects, from the pod's address where there is one to bind.
pub(crate) async fn dial(hop: Hop) -> io::Result<TcpStream> {
    connect(socket(hop)?, hop).await
}

/// As [`dial`], from where the pod's sockets are made.
async fn dial_as(network: &PodNetwork, hop: Hop) -> io::Result<TcpStream> {
    connect(network.within(|| socket(hop))??, hop).await
}

fn socket(hop: Hop) -> io::Result<TcpSocket> {
    if hop.to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

async fn connect(socket: TcpSocket, hop: Hop) -> io::Result<TcpStream> {
    if let Some(from) = hop.from {
        choose_port_at_connect(&socket)?;
        socket.bind(SocketAddr::new(from.into(), 0))?;
    }
    socket.connect(hop.to).await
}

/// Binds the address only: with the port chosen at connect, 28,000 of them serve each peer, not all peers together.
fn choose_port_at_connect(socket: &TcpSocket) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open while `socket` is borrowed, and the pointer and length describe `on`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;
    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().open(uri))
    }
}

#[cfg(test)]
mod tests;
