//! The client of webhooks: JSON posted over HTTPS to a server that a configuration names, with a bound on everything.
//!
//! Connections are kept and used again. A Service is dialled at one of its endpoints, as its resolver says at that moment.

mod dial;
pub(crate) mod trust;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coracle_api::Status;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use dial::Dial;

/// Most bytes of an answer: what a body of the API may have.
const ANSWER_MAX: usize = crate::body::LIMIT;
/// Most bytes of a refusal that are told on.
const REFUSAL_MAX: usize = 2048;
/// Most servers whose connections are kept.
const SERVERS_MAX: usize = 256;
const IDLE: Duration = Duration::from_secs(90);
const USER_AGENT: &str = "kube-apiserver-admission";

/// Finds an endpoint of a Service.
#[async_trait]
pub trait ServiceResolver: Send + Sync + 'static {
    /// Host and port to connect to; the error is in words.
    async fn resolve(&self, namespace: &str, name: &str, port: u16) -> Result<(String, u16), String>;
}

/// Where a webhook is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The whole URL, without a query.
    pub url: String,
    /// Namespace, name and port, if it is a Service.
    pub service: Option<(String, String, u16)>,
    /// Certificates (PEM) that are trusted; empty for those of the system.
    pub ca: Bytes,
}

impl Place {
    /// What a `WebhookClientConfig` says; the error is in words.
    ///
    /// # Errors
    /// Neither a URL nor a Service, or a bundle that is no base64.
    pub fn of(config: &Value) -> Result<Self, String> {
        use base64::Engine;
        let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let ca = base64::engine::general_purpose::STANDARD
            .decode(text("/caBundle"))
            .map_err(|e| format!("caBundle: {e}"))?;
        let ca = Bytes::from(ca);
        if config.get("service").is_some_and(Value::is_object) {
            let (namespace, name) = (text("/service/namespace"), text("/service/name"));
            let port = config.pointer("/service/port").and_then(Value::as_u64).unwrap_or(443);
            let port = u16::try_from(port).map_err(|_| "service.port is no port".to_owned())?;
            let path = text("/service/path").trim_start_matches('/');
            return Ok(Self {
                url: format!("https://{name}.{namespace}.svc:{port}/{path}"),
                service: Some((namespace.to_owned(), name.to_owned(), port)),
                ca,
            });
        }
        match text("/url") {
            "" => Err("webhook configuration must have either service or URL".into()),
            url => Ok(Self { url: url.to_owned(), service: None, ca }),
        }
    }
}

/// Why a call brought no answer.
#[derive(Debug)]
pub struct CallError {
    /// In the words of Kubernetes.
    pub words: String,
    /// What the webhook's server said, if it spoke.
    pub status: Option<Status>,
}

impl CallError {
    fn new(words: impl Into<String>) -> Self {
        Self { words: words.into(), status: None }
    }
}

type Http = Client<HttpsConnector<Dial>, Full<Bytes>>;

/// Calls webhooks. Cheap to share.
pub struct WebhookClient {
    servers: Mutex<HashMap<[u8; 32], Http>>,
    resolver: Arc<dyn ServiceResolver>,
}

impl WebhookClient {
    /// A client that finds Services with this resolver.
    pub fn new(resolver: Arc<dyn ServiceResolver>) -> Self {
        Self { servers: Mutex::default(), resolver }
    }

    /// Posts JSON and reads the JSON that comes back, within a time.
    ///
    /// # Errors
    /// No connection, no trust, no time, an answer that is too long, no JSON or no success.
    pub async fn post(&self, place: &Place, body: Bytes, limit: Duration) -> Result<Value, CallError> {
        let mark = if place.url.contains('?') { '&' } else { '?' };
        // Whole seconds, as Kubernetes tells the time that is left.
        let seconds = limit.as_millis().div_ceil(1000);
        let url = format!("{}{mark}timeout={seconds}s", place.url);
        let posting = |why: String| CallError::new(format!("Post {url:?}: {why}"));
        let client = self.client(place).map_err(&posting)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, USER_AGENT)
            .body(Full::new(body))
            .map_err(|e| posting(e.to_string()))?;
        let call = async {
            let response = client.request(request).await.map_err(|e| posting(cause(&e)))?;
            let code = response.status();
            let read = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let bytes = read.map_err(|e| CallError::new(format!("reading the answer: {e}")))?.to_bytes();
            answer(code, &bytes)
        };
        match tokio::time::timeout(limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(posting("context deadline exceeded".into())),
        }
    }

    fn client(&self, place: &Place) -> Result<Http, String> {
        let uri: http::Uri = place.url.parse().map_err(|e| format!("parse {:?}: {e}", place.url))?;
        let mut hash = Sha256::new();
        hash.update(&place.ca);
        hash.update([0]);
        hash.update(uri.authority().map_or("", |a| a.as_str()));
        hash.update([0]);
        hash.update(format!("{:?}", place.service));
        let key: [u8; 32] = hash.finalize().into();
        if let Some(known) = self.servers.lock().get(&key) {
            return Ok(known.clone());
        }
        let dial = Dial { service: place.service.clone(), resolver: self.resolver.clone() };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust::config(&place.ca)?)
            .https_only()
            .enable_all_versions()
            .wrap_connector(dial);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(16)
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_timeout(Duration::from_secs(15))
            .build(connector);
        let mut servers = self.servers.lock();
        if servers.len() >= SERVERS_MAX {
            servers.clear();
        }
        servers.insert(key, client.clone());
        Ok(client)
    }
}

/// The answer of a server that spoke.
fn answer(code: http::StatusCode, bytes: &[u8]) -> Result<Value, CallError> {
    if code.is_success() {
        return serde_json::from_slice(bytes)
            .map_err(|e| CallError::new(format!("couldn't get version/kind; json parse error: {e}")));
    }
    let said: Option<Value> = serde_json::from_slice(bytes).ok();
    if let Some(status) = said.as_ref().and_then(Status::from_value) {
        return Err(CallError { words: status.message.clone(), status: Some(status) });
    }
    let said = String::from_utf8_lossy(bytes.get(..REFUSAL_MAX).unwrap_or(bytes));
    let said = said.trim();
    let (reason, words) = match code.as_u16() {
        400 => ("BadRequest", "the server rejected our request for an unknown reason".to_owned()),
        401 => ("Unauthorized", "the server has asked for the client to provide credentials".to_owned()),
        403 => ("Forbidden", said.to_owned()),
        404 => ("NotFound", "the server could not find the requested resource".to_owned()),
        405 => ("MethodNotAllowed", "the server does not allow this method on the requested resource".to_owned()),
        429 => ("TooManyRequests", "the server has received too many requests and has asked us to try again later".to_owned()),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request".to_owned()),
        504 => ("Timeout", "the server was unable to return a response in the time allotted, but may still be processing the request".to_owned()),
        500.. => ("InternalError", format!("an error on the server ({said:?}) has prevented the request from succeeding")),
        other => ("Unknown", format!("the server responded with the status code {other} but did not return more information")),
    };
    let status = Status::new(code.as_u16(), reason, words.clone());
    Err(CallError { words, status: Some(status) })
}

/// The innermost cause, in Go's words where there are such.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    for _ in 0..16 {
        // An I/O error hides what it carries.
        let carried = at.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match carried.map(|c| c as &(dyn std::error::Error + 'static)).or_else(|| at.source()) {
            Some(inner) => at = inner,
            None => break,
        }
    }
    match at.downcast_ref::<rustls::Error>() {
        Some(error) => trust::words(error),
        None => at.to_string(),
    }
}
