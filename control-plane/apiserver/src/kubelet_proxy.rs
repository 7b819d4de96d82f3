//! Calls that the server hands on: to a node (logs, exec, `nodes/proxy`), a pod or a Service. Where a call goes is a
//! resolver's business. Connections may be upgraded.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use coracle_api::Status;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::connect::{SubresourceHandler, SubresourceRequest};

pub(crate) mod upgrade;

/// The user name of the server's own client certificate; it is in `system:masters`.
pub const CLIENT_USER: &str = "kube-apiserver-kubelet-client";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of what a node says when it refuses, and how long it may take to say it.
const REFUSAL_LIMIT: usize = 64 << 10;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a call goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeEndpoint {
    /// An address or a host name that the node's serving certificate covers.
    pub host: String,
    /// The port of the node's API.
    pub port: u16,
    /// Absolute path on the node.
    pub path: String,
    /// Query without `?`; empty for none.
    pub query: String,
    /// HTTP without TLS: a pod or a Service, not a node.
    pub plain: bool,
}

/// Finds the node of a call and what to ask of it.
#[async_trait]
pub trait ResolveNode: Send + Sync + 'static {
    /// The endpoint, or the error to answer.
    async fn resolve(&self, request: &SubresourceRequest<()>) -> Result<NodeEndpoint, Status>;
}

/// Talks to nodes with the server's client certificate and trusts the cluster's authority alone.
#[derive(Clone)]
pub struct KubeletProxy {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    plain: Client<HttpConnector, Body>,
}

impl KubeletProxy {
    /// A proxy with this TLS set-up; see [`crate::ca::ClusterCa::client_config`].
    pub fn new(tls: rustls::ClientConfig) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let client = |timer| {
            let mut builder = Client::builder(TokioExecutor::new());
            builder.pool_idle_timeout(Duration::from_secs(60)).pool_timer(timer);
            builder
        };
        let plain = client(TokioTimer::new()).build(http.clone());
        // HTTP/1.1, so that upgrades can pass.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(http);
        Self { client: client(TokioTimer::new()).build(connector), plain }
    }

    /// A subresource handler that sends calls where `resolver` says. Bodies are streamed both ways.
    pub fn handler(&self, resolver: Arc<dyn ResolveNode>) -> Arc<dyn SubresourceHandler> {
        Arc::new(Forward { proxy: self.clone(), resolver })
    }

    /// Sends a call on and answers with what is said there; an upgraded connection is joined to the caller's.
    ///
    /// # Errors
    /// 503 when the node cannot be reached. What a node refuses in plain text becomes a Status with its code and words.
    pub async fn forward(
        &self,
        endpoint: &NodeEndpoint,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let asked = upgrade::asked(&mut request);
        let authority = match endpoint.host.contains(':') {
            true => format!("[{}]:{}", endpoint.host, endpoint.port),
            false => format!("{}:{}", endpoint.host, endpoint.port),
        };
        let mark = if endpoint.query.is_empty() { "" } else { "?" };
        let scheme = if endpoint.plain { "http" } else { "https" };
        let uri: Uri = format!("{scheme}://{authority}{}{mark}{}", endpoint.path, endpoint.query)
            .parse()
            .map_err(|e| Status::bad_request(format!("path of the node: {e}")))?;
        let (parts, body) = request.into_parts();
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = uri;
        *onward.headers_mut() = end_to_end(&parts.headers);
        if let Some(asked) = &asked {
            asked.mark(onward.headers_mut());
        }
        let (what, sent) = match endpoint.plain {
            true => ("endpoint", self.plain.request(onward).await),
            false => ("node", self.client.request(onward).await),
        };
        let response = sent.map_err(|e| {
            tracing::warn!(%authority, error = %e, "{what} does not answer");
            let why = cause(&e);
            Status::service_unavailable(format!("error trying to reach the {what} at {authority}: {why}"))
        })?;
        let status = response.status();
        let failed = status.is_client_error() || status.is_server_error();
        if failed && !endpoint.plain && is_plain_text(response.headers()) {
            return Err(refusal(status, Body::new(response.into_body())).await);
        }
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = status;
        *answer.headers_mut() = end_to_end(response.headers());
        match asked {
            Some(asked) if status == StatusCode::SWITCHING_PROTOCOLS => asked.join(&mut answer, response),
            _ => *answer.body_mut() = Body::new(response.into_body()),
        }
        Ok(answer)
    }
}

struct Forward {
    proxy: KubeletProxy,
    resolver: Arc<dyn ResolveNode>,
}

#[async_trait]
impl SubresourceHandler for Forward {
    async fn handle(&self, request: SubresourceRequest) -> Result<Response<Body>, Status> {
        let (request, body) = request.split();
        let endpoint = self.resolver.resolve(&request).await?;
        self.proxy.forward(&endpoint, request.http.map(|()| body)).await
    }
}

/// Answers 501: for connections that are not served yet.
pub struct NotImplemented {
    /// What is missing, such as `exec`.
    pub what: &'static str,
}

#[async_trait]
impl SubresourceHandler for NotImplemented {
    async fn handle(&self, _: SubresourceRequest) -> Result<Response<Body>, Status> {
        Err(Status::new(501, "NotImplemented", format!("{} is not served by this server yet", self.what)))
    }
}

/// Headers without those of one connection and without credentials.
pub(crate) fn end_to_end(headers: &HeaderMap<HeaderValue>) -> HeaderMap<HeaderValue> {
    const DROPPED: [HeaderName; 8] = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::HOST,
        header::AUTHORIZATION,
        header::COOKIE,
    ];
    let kept = headers.iter().filter(|(name, _)| {
        !DROPPED.contains(name)
            && *name != "keep-alive"
            && *name != "proxy-connection"
            && !name.as_str().starts_with("impersonate-")
    });
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn is_plain_text(headers: &HeaderMap<HeaderValue>) -> bool {
    match headers.get(header::CONTENT_TYPE) {
        Some(kind) => kind.as_bytes().starts_with(b"text/plain"),
        None => true,
    }
}

/// What a node says when it refuses, as clients of the API read it.
async fn refusal(code: StatusCode, body: Body) -> Status {
    let read = Limited::new(body, REFUSAL_LIMIT).collect();
    let words = match tokio::time::timeout(REFUSAL_TIMEOUT, read).await {
        Ok(Ok(read)) => String::from_utf8_lossy(&read.to_bytes()).trim().to_owned(),
        _ => String::new(),
    };
    let words = if words.is_empty() { format!("the node answered {code}") } else { words };
    let reason = match code.as_u16() {
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        429 => "TooManyRequests",
        500 => "InternalError",
        501 => "NotImplemented",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    };
    Status::new(code.as_u16(), reason, words)
}

/// The innermost cause: the outer ones only say that something failed.
pub(crate) fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    for _ in 0..16 {
        match at.source() {
            Some(inner) => at = inner,
            None => break,
        }
    }
    at.to_string()
}
