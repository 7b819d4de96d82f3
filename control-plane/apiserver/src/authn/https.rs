//! Calls to who vouches for tokens: an OpenID Connect provider, or a webhook.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use serde_json::Value;

use crate::ca::{Identity, provider};
use crate::kubelet_proxy::cause;
use crate::webhook::trust;

/// Most bytes of an answer.
const ANSWER_MAX: usize = 1 << 20;
/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(90);

/// A client of one server.
pub struct Https {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    bearer: Option<String>,
}

impl Https {
    /// A client that trusts this bundle (PEM), or the system's where it is empty; and shows a certificate or a bearer token.
    ///
    /// # Errors
    /// What cannot be read, in words.
    pub fn new(bundle: &[u8], identity: Option<&Identity>, bearer: Option<String>) -> Result<Self, String> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(trust::verifier(bundle)?);
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.parts().map_err(|e| e.to_string())?;
                builder.with_client_auth_cert(chain, key).map_err(|e| e.to_string())?
            }
        };
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_all_versions()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client, bearer })
    }

    /// The JSON at a URL.
    ///
    /// # Errors
    /// In words: no connection, no trust, no time, no success, no JSON, too much.
    pub async fn get(&self, url: &str) -> Result<Value, String> {
        self.call(Method::GET, url, Bytes::new()).await
    }

    /// Posts JSON; the JSON that comes back.
    ///
    /// # Errors
    /// The same.
    pub async fn post(&self, url: &str, body: &Value) -> Result<Value, String> {
        self.call(Method::POST, url, body.to_string().into()).await
    }

    async fn call(&self, method: Method, url: &str, body: Bytes) -> Result<Value, String> {
        let uri: Uri = url.parse().map_err(|e| format!("{url}: {e}"))?;
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(bearer) = &self.bearer {
            request = request.header(header::AUTHORIZATION, format!("Bearer {bearer}"));
        }
        let request = request.body(Full::new(body)).map_err(|e| format!("{url}: {e}"))?;
        let work = async {
            let response = self.client.request(request).await.map_err(|e| cause(&e))?;
            let code = response.status();
            let read = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
            let bytes = read.map_err(|e| e.to_string())?.to_bytes();
            match code {
                StatusCode::OK | StatusCode::CREATED => {
                    serde_json::from_slice(&bytes).map_err(|e| format!("the answer is not JSON: {e}"))
                }
                code => Err(format!("the answer is {code}")),
            }
        };
        let done = tokio::time::timeout(TIMEOUT, work).await;
        done.unwrap_or_else(|_| Err("it took too long".into())).map_err(|why| format!("{url}: {why}"))
    }
}
