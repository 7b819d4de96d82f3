//! Calls to other members.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::wire::{CLUSTER, MAX_BODY};
use super::{Dial, Lost, PeerTls, Peering, Transport, VERSIONS, Versions, Way, wire};
use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A member that says nothing for so long, while it is asked something, is gone.
const PING_EVERY: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(4);
/// What a member said of itself counts for so long: a dozen heartbeats.
const LATELY: Duration = Duration::from_secs(2);
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// It was never sent.
    Unsent(String),
    /// The member does not understand this one, or the other way round, and did nothing.
    Refused(String),
    /// It may have been heard.
    Unknown(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Unsent(what) | Self::Refused(what) | Self::Unknown(what)) = self;
        f.write_str(what)
    }
}

impl std::error::Error for CallError {}

/// Connections to all members, made when they are needed.
pub(crate) struct Peers {
    cluster: String,
    versions: Versions,
    by: By,
    links: Mutex<HashMap<(u64, String), Arc<Link>>>,
}

/// The way to one member.
pub(crate) struct Link {
    member: u64,
    address: String,
    cluster: String,
    versions: Versions,
    by: By,
    /// The newest version that it speaks, and when it last said so.
    speaks: Mutex<Option<(u64, Instant)>>,
    open: tokio::sync::Mutex<Option<SendRequest<Body>>>,
    /// Whether it could not be reached when it was last tried.
    lost: AtomicBool,
}

/// How members are reached.
#[derive(Clone)]
enum By {
    Sockets { tls: tokio_rustls::TlsConnector, dial: Option<Dial> },
    Simulated(Arc<dyn Transport>),
}

impl Peers {
    pub fn new(peering: &Peering, versions: Versions) -> Result<Self, Error> {
        let by = match &peering.way {
            Way::Sockets { tls, dial, .. } => {
                By::Sockets { tls: tls.client_config()?.into(), dial: dial.clone() }
            }
            Way::Simulated(transport) => By::Simulated(transport.clone()),
        };
        Ok(Self { cluster: peering.cluster.clone(), versions, by, links: Mutex::default() })
    }

    /// The way to a member at an address; calls of all parts share its connection.
    pub fn link(&self, member: u64, address: &str) -> Arc<Link> {
        let mut links = self.links.lock();
        // A member that moved leaves its old way behind.
        links.retain(|(id, at), _| *id != member || at == address);
        let link = links
            .entry((member, address.to_owned()))
            .or_insert_with(|| Arc::new(self.fresh(member, address)));
        link.clone()
    }

    /// A way of its own, so that much data does not hold up what is urgent.
    pub fn fresh(&self, member: u64, address: &str) -> Link {
        Link {
            member,
            address: address.to_owned(),
            cluster: self.cluster.clone(),
            versions: self.versions,
            by: self.by.clone(),
            speaks: Mutex::default(),
            open: tokio::sync::Mutex::default(),
            lost: AtomicBool::new(false),
        }
    }
}

impl Link {
    /// Asks and reads the answer.
    pub async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        ask: &Q,
        timeout: Duration,
    ) -> Result<A, CallError> {
        self.call_with(path, ask, None, timeout).await
    }

    /// The same with a header.
    pub async fn call_with<Q: Serialize, A: DeserializeOwned>(
        &self,
        path: &str,
        ask: &Q,
        header: Option<(&'static str, HeaderValue)>,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let body = postcard::to_stdvec(ask).map_err(|error| CallError::Unsent(error.to_string()))?;
        let asked = async {
            let mut request = self.request(Method::POST, path, full(body))?;
            request.headers_mut().extend(header.map(|(name, value)| (HeaderName::from_static(name), value)));
            read_answer(self.send_request(request).await?).await
        };
        match tokio::time::timeout(timeout, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(CallError::Unknown(format!("{self} did not answer {path} within {timeout:?}"))),
        }
    }

    /// Sends a request; returns when the head of the answer is there.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Body,
    ) -> Result<Response<axum::body::Body>, CallError> {
        self.send_request(self.request(method, path, body)?).await
    }

    fn request(&self, method: Method, path: &str, body: Body) -> Result<Request<Body>, CallError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", PeerTls::name(self.member)))
            .header(CLUSTER, &self.cluster)
            .body(body)
            .map_err(|error| CallError::Unsent(error.to_string()))?;
        if let Some(versions) = self.versions.header() {
            request.headers_mut().insert(VERSIONS, versions);
        }
        Ok(request)
    }

    async fn send_request(&self, request: Request<Body>) -> Result<Response<axum::body::Body>, CallError> {
        let (tls, dial) = match &self.by {
            By::Sockets { tls, dial } => (tls, dial),
            By::Simulated(transport) => {
                let sent = transport.send(&self.address, request.map(axum::body::Body::new)).await;
                let answered = sent.map_err(|lost| match lost {
                    Lost::Unsent => CallError::Unsent(format!("{self} cannot be reached")),
                    Lost::Unknown => CallError::Unknown(format!("{self} did not answer")),
                });
                return self.heard(answered?);
            }
        };
        let mut sender = self.sender(tls, dial.as_ref()).await?;
        match sender.try_send_request(request).await {
            Ok(response) => self.heard(response.map(axum::body::Body::new)),
            Err(mut error) => {
                let unsent = error.take_message().is_some();
                let what = format!("{self}: {}", error.error());
                Err(if unsent { CallError::Unsent(what) } else { CallError::Unknown(what) })
            }
        }
    }

    /// The newest version that this member speaks, if it has answered a call lately: it may be back with another one.
    pub fn speaks(&self) -> Option<u64> {
        self.speaks.lock().filter(|(_, at)| at.elapsed() < LATELY).map(|(version, _)| version)
    }

    /// Notes what a member says of itself.
    fn heard(&self, response: Response<axum::body::Body>) -> Result<Response<axum::body::Body>, CallError> {
        let theirs = Versions::read(response.headers());
        *self.speaks.lock() = Some((theirs.newest, Instant::now()));
        let apart = self.versions.check(theirs).map_err(|why| format!("{self}: {why}"));
        match (apart, response.status()) {
            (Ok(()), _) => Ok(response),
            (Err(why), StatusCode::UPGRADE_REQUIRED) => Err(CallError::Refused(why)),
            // One that does not check has done what it understood.
            (Err(why), _) => Err(CallError::Unknown(why)),
        }
    }

    async fn sender(
        &self,
        tls: &tokio_rustls::TlsConnector,
        dial: Option<&Dial>,
    ) -> Result<SendRequest<Body>, CallError> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect(tls, dial)).await;
        let connected =
            connected.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        let sender = match connected {
            Ok(sender) => sender,
            Err(error) => {
                if !self.lost.swap(true, Ordering::Relaxed) {
                    tracing::warn!(member = self.member, address = self.address, %error, "a member is lost");
                }
                return Err(CallError::Unsent(format!("{self}: {error}")));
            }
        };
        if self.lost.swap(false, Ordering::Relaxed) {
            tracing::info!(member = self.member, address = self.address, "a member is back");
        }
        Ok(open.insert(sender).clone())
    }

    async fn connect(
        &self,
        tls: &tokio_rustls::TlsConnector,
        dial: Option<&Dial>,
    ) -> io::Result<SendRequest<Body>> {
        let address = dial.map_or_else(|| self.address.clone(), |dial| dial(&self.address));
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(PeerTls::name(self.member)).map_err(io::Error::other)?;
        let tls = tls.connect(name, stream).await?;
        let (sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(io::Error::other)?;
        let member = self.member;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(member, %error, "connection to a member");
            }
        });
        Ok(sender)
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "member {} at {}", self.member, self.address)
    }
}

/// A body that is there already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The answer in a response.
pub(crate) async fn read_answer<A: DeserializeOwned>(
    response: Response<axum::body::Body>,
) -> Result<A, CallError> {
    let status = response.status();
    let body = Limited::new(response.into_body(), wire::MAX_BODY).collect().await;
    let body = body.map_err(|error| CallError::Unknown(error.to_string()))?.to_bytes();
    if !status.is_success() {
        let words = String::from_utf8_lossy(body.get(..body.len().min(512)).unwrap_or_default()).into_owned();
        let what = format!("{status}: {words}");
        // Refused before anything was done.
        return Err(if status.is_client_error() {
            CallError::Unsent(what)
        } else {
            CallError::Unknown(what)
        });
    }
    postcard::from_bytes(&body).map_err(|error| CallError::Unknown(error.to_string()))
}

const _: () = assert!(MAX_BODY > crate::MAX_TXN_BYTES);
