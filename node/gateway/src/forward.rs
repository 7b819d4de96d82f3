//! One request: found in the table, sent to an endpoint, its answer streamed back.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderName, UPGRADE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};

use crate::meters::{Meters, RevisionKey};
use crate::pick::{Counted, NoEndpoint, Taken, pick};
use crate::table::{Table, Target};

/// Requests that wait for a pod at a time, over all revisions.
const MOST_WAITING: usize = 10_000;
/// A body up to this many bytes is kept, so that its request can be sent to another endpoint.
const KEPT_BODY: u64 = 64 * 1024;
/// Endpoints that one request is tried at.
const ATTEMPTS: usize = 3;
const CONNECT: Duration = Duration::from_secs(5);
/// Until the head of the answer; Knative's default for a revision.
const ANSWER: Duration = Duration::from_secs(300);
const IDLE: Duration = Duration::from_secs(30);
/// Headers that are between two neighbours only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    http::header::TE,
    http::header::TRAILER,
    http::header::TRANSFER_ENCODING,
    UPGRADE,
];

type Sent = Either<Full<Bytes>, Incoming>;
/// What is answered: an endpoint's body, or our own words.
pub type Answer = Response<Either<Full<Bytes>, Counting>>;

/// Why a request goes nowhere, for its sender.
type Refusal = (StatusCode, &'static str);

/// What all requests of a gateway share.
pub struct State {
    table: ArcSwap<Table>,
    changes: watch::Sender<u64>,
    pub meters: Meters,
    pub waiting: Semaphore,
    client: Client<HttpConnector, Sent>,
}

impl State {
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector);
        Self {
            table: ArcSwap::default(),
            changes: watch::Sender::new(0),
            meters: Meters::new(),
            waiting: Semaphore::new(MOST_WAITING),
            client,
        }
    }

    /// The present table.
    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    /// Changes with the table.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Puts another table in place and wakes the requests that wait.
    pub fn replace(&self, table: Table) {
        self.meters.retain(|key| table.has(key));
        self.table.store(Arc::new(table));
        self.changes.send_modify(|count| *count += 1);
    }
}

/// Answers a request that came from `peer`.
pub async fn forward(state: Arc<State>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
    let found = {
        let host = host(&request).unwrap_or_default();
        state.table().find(host, request.uri().path(), rand::random())
    };
    let Some(target) = found else { return words(StatusCode::NOT_FOUND, "default backend - 404\n") };
    let counted = RevisionKey::of(&target.backend).map(|key| Counted::new(&state, key));
    let mut outgoing = match Outgoing::new(request, &target, peer).await {
        Ok(outgoing) => outgoing,
        Err((status, text)) => return words(status, text),
    };
    let mut failed = Vec::new();
    loop {
        let taken = match pick(&state, &target.backend, &failed).await {
            Ok(taken) => taken,
            Err(NoEndpoint::NoneReady) if !failed.is_empty() => {
                return words(StatusCode::BAD_GATEWAY, "no endpoint of the Service answered\n");
            }
            Err(NoEndpoint::NoneReady) => {
                return words(StatusCode::SERVICE_UNAVAILABLE, "the Service has no ready endpoint\n");
            }
            Err(NoEndpoint::TooManyWait) => {
                return words(StatusCode::SERVICE_UNAVAILABLE, "too many requests wait for a pod\n");
            }
            Err(NoEndpoint::TimedOut) => {
                return words(StatusCode::GATEWAY_TIMEOUT, "no pod of the revision was ready in time\n");
            }
        };
        let request = match outgoing.request(taken.endpoint) {
            Ok(request) => request,
            Err((status, text)) => return words(status, text),
        };
        match tokio::time::timeout(ANSWER, state.client.request(request)).await {
            Ok(Ok(response)) => return outgoing.answer(response, counted, taken),
            Ok(Err(error)) if outgoing.may_repeat(&error) && failed.len() + 1 < ATTEMPTS => {
                failed.push(taken.endpoint);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, endpoint = %taken.endpoint, "a request failed at its endpoint");
                return words(StatusCode::BAD_GATEWAY, "the endpoint broke the connection\n");
            }
            Err(_) => return words(StatusCode::GATEWAY_TIMEOUT, "the endpoint did not answer in time\n"),
        }
    }
}

/// The host that a request is for, without its port.
fn host<T>(request: &Request<T>) -> Option<&str> {
    let named = request.headers().get(HOST).and_then(|value| value.to_str().ok());
    let host = request.uri().host().or(named)?;
    // An IPv6 literal keeps its brackets and loses its port.
    match host.strip_prefix('[') {
        Some(_) => host.find(']').and_then(|end| host.get(..=end)),
        None => host.split(':').next(),
    }
}

/// A request on its way, kept so that it can be sent again.
struct Outgoing {
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    body: Kept,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
}

enum Kept {
    Whole(Bytes),
    /// None once it is on its way.
    Streamed(Option<Incoming>),
}

impl Outgoing {
    async fn new(mut request: Request<Incoming>, target: &Target, peer: SocketAddr) -> Result<Self, Refusal> {
        let upgrade = request.headers().contains_key(UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (parts, body) = request.into_parts();
        let path = rewritten(&parts.uri, target.path.as_deref())
            .ok_or((StatusCode::BAD_REQUEST, "the request has no path\n"))?;
        let length = parts.headers.get(CONTENT_LENGTH).and_then(|l| l.to_str().ok()?.parse::<u64>().ok());
        let body = if body.is_end_stream() || length.is_some_and(|length| length <= KEPT_BODY) {
            let whole = body.collect().await;
            let whole = whole.map_err(|_| (StatusCode::BAD_REQUEST, "the request broke off\n"))?;
            Kept::Whole(whole.to_bytes())
        } else {
            Kept::Streamed(Some(body))
        };
        let headers = headers(parts.headers, &parts.uri, peer, upgrade.is_some());
        Ok(Self { method: parts.method, path, headers, body, upgrade })
    }

    fn request(&mut self, endpoint: SocketAddr) -> Result<Request<Sent>, Refusal> {
        let body = match &mut self.body {
            Kept::Whole(bytes) => Either::Left(Full::new(bytes.clone())),
            Kept::Streamed(body) => Either::Right(body.take().ok_or((
                StatusCode::BAD_GATEWAY,
                "the request was sent once and cannot be repeated
",
            ))?),
        };
        let uri =
            Uri::builder().scheme("http").authority(endpoint.to_string()).path_and_query(self.path.clone());
        let request = uri.build().ok().and_then(|uri| {
            let mut request =
                Request::builder().method(self.method.clone()).uri(uri).version(Version::HTTP_11);
            request.headers_mut()?.clone_from(&self.headers);
            request.body(body).ok()
        });
        request.ok_or((StatusCode::BAD_REQUEST, "the request cannot be forwarded\n"))
    }

    /// Whether sending it again cannot do anything twice.
    fn may_repeat(&self, error: &hyper_util::client::legacy::Error) -> bool {
        let whole = matches!(self.body, Kept::Whole(_));
        whole && (error.is_connect() || matches!(self.method, Method::GET | Method::HEAD))
    }

    fn answer(self, mut response: Response<Incoming>, counted: Option<Counted>, taken: Taken) -> Answer {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS
            && let Some(client) = self.upgrade
        {
            let server = hyper::upgrade::on(&mut response);
            let (parts, _) = response.into_parts();
            tokio::spawn(async move {
                let _open = (counted, taken);
                if let (Ok(client), Ok(server)) = (client.await, server.await) {
                    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
            return Response::from_parts(parts, Either::Left(Full::default()));
        }
        for name in &HOP_BY_HOP {
            response.headers_mut().remove(name);
        }
        response.map(|body| Either::Right(Counting { body, _open: (counted, taken) }))
    }
}

fn rewritten(uri: &Uri, path: Option<&str>) -> Option<PathAndQuery> {
    let Some(path) = path else { return Some(uri.path_and_query()?.clone()) };
    match uri.query() {
        Some(query) => format!("{path}?{query}").parse().ok(),
        None => path.parse().ok(),
    }
}

fn headers(mut headers: HeaderMap, uri: &Uri, peer: SocketAddr, upgrade: bool) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let kept = if upgrade { headers.get(UPGRADE).cloned() } else { None };
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
    if let Some(protocol) = kept {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if !headers.contains_key(HOST)
        && let Some(host) = uri.authority().and_then(|host| host.as_str().parse().ok())
    {
        headers.insert(HOST, host);
    }
    let before = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
    let path = before.map_or_else(|| peer.ip().to_string(), |before| format!("{before}, {}", peer.ip()));
    if let Ok(path) = path.parse() {
        headers.insert("x-forwarded-for", path);
    }
    headers.entry("x-forwarded-proto").or_insert(HeaderValue::from_static("http"));
    if let Some(host) = headers.get(HOST).cloned() {
        headers.entry("x-forwarded-host").or_insert(host);
    }
    headers
}

fn words(status: StatusCode, text: &'static str) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    response
}

/// The body of an answer; its request counts as being here until it ends.
pub struct Counting {
    body: Incoming,
    _open: (Option<Counted>, Taken),
}

impl Body for Counting {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
