//! Another API server, reached over TLS: it is told who calls in headers, and believes them because of the client certificate.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use coracle_api::Status;
use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::ca::{self, Identity};
use crate::kubelet_proxy::{cause, end_to_end, upgrade};
use crate::request::UserInfo;
use crate::webhook::trust;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
const USER: HeaderName = HeaderName::from_static("x-remote-user");
const UID: HeaderName = HeaderName::from_static("x-remote-uid");
const GROUP: HeaderName = HeaderName::from_static("x-remote-group");
const PREFIX: &str = "x-remote-";

/// Whose certificate the other server must show.
pub enum Trust<'a> {
    /// One that these authorities (PEM) signed; where there are none, those of the system.
    Bundle(&'a [u8]),
    /// Anyone's.
    Anyone,
}

/// A client of another server.
pub struct Remote {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    host: HeaderValue,
}

impl Remote {
    /// A client of the server that is called `name`, which shows it `identity`.
    ///
    /// # Errors
    /// A bundle, name or identity that cannot be read.
    pub fn new(name: &str, trust: &Trust<'_>, identity: Option<&Identity>) -> Result<Self, ca::Error> {
        let wrong = |reason: String| ca::Error::Certificate { subject: name.to_owned(), reason };
        let provider = ca::provider();
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|e| wrong(e.to_string()))?;
        let builder = match trust {
            Trust::Anyone => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate { provider }))
            }
            Trust::Bundle(pem) => {
                builder.dangerous().with_custom_certificate_verifier(trust::verifier(pem).map_err(&wrong)?)
            }
        };
        let tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.parts()?;
                builder.with_client_auth_cert(chain, key).map_err(|e| wrong(e.to_string()))?
            }
        };
        let server_name = ServerName::try_from(name.to_owned()).map_err(|e| wrong(e.to_string()))?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // HTTP/1.1, so that upgrades can pass.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .with_server_name_resolver(FixedServerNameResolver::new(server_name))
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { client, host: HeaderValue::from_str(name).map_err(|e| wrong(e.to_string()))? })
    }

    /// Sends a call to one of the server's addresses, as `user`; an upgraded connection is joined to the caller's.
    ///
    /// # Errors
    /// 503 where it cannot be reached.
    pub async fn send(
        &self,
        (address, port): (&str, u16),
        user: &UserInfo,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Status> {
        let asked = upgrade::asked(&mut request);
        let target = request.uri().path_and_query().map_or("/", |p| p.as_str());
        let uri: Uri = match address.contains(':') {
            true => format!("https://[{address}]:{port}{target}"),
            false => format!("https://{address}:{port}{target}"),
        }
        .parse()
        .map_err(|e| Status::bad_request(format!("the path: {e}")))?;
        let (parts, body) = request.into_parts();
        let mut onward = Request::new(body);
        *onward.method_mut() = parts.method;
        *onward.uri_mut() = uri;
        *onward.headers_mut() = headers(&parts.headers, user);
        onward.headers_mut().insert(HOST, self.host.clone());
        if let Some(asked) = &asked {
            asked.mark(onward.headers_mut());
        }
        let response = self.client.request(onward).await.map_err(|e| {
            let why = cause(&e);
            tracing::debug!(address, port, error = %why, "another API server does not answer");
            Status::service_unavailable(format!("error trying to reach service: {why}"))
        })?;
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = end_to_end(response.headers());
        match asked {
            Some(asked) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                asked.join(&mut answer, response);
            }
            _ => *answer.body_mut() = Body::new(response.into_body()),
        }
        Ok(answer)
    }
}

/// The caller's headers, and who the caller is. What a caller says of that himself is dropped.
fn headers(of: &HeaderMap, user: &UserInfo) -> HeaderMap {
    let mut headers: HeaderMap =
        end_to_end(of).into_iter().filter_map(|(name, value)| Some((name?, value))).collect();
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|n| n.as_str().starts_with(PREFIX)).cloned().collect();
    claimed.iter().for_each(|name| {
        headers.remove(name);
    });
    let mut add = |name: HeaderName, text: &str| {
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.append(name, value);
        }
    };
    add(USER, &user.name);
    if !user.uid.is_empty() {
        add(UID, &user.uid);
    }
    user.groups.iter().for_each(|group| add(GROUP, group));
    for (key, values) in &user.extra {
        let Ok(name) = HeaderName::try_from(format!("x-remote-extra-{}", escaped(key))) else { continue };
        values.iter().for_each(|value| add(name.clone(), value));
    }
    headers
}

/// A key as part of the name of a header: what a header's name may not have is percent-encoded.
fn escaped(key: &str) -> String {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"!#$&'*+-.^_`|~".contains(&c);
    key.bytes().map(|c| if plain(c) { char::from(c).to_string() } else { format!("%{c:02x}") }).collect()
}

/// Believes every certificate, for who asks for that; signatures are checked all the same.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_says_himself_who_he_is() {
        let mut of = HeaderMap::new();
        for (name, value) in [("x-remote-user", "root"), ("x-remote-extra-a", "b"), ("accept", "text/plain")]
        {
            of.insert(name, HeaderValue::from_static(value));
        }
        of.insert("authorization", HeaderValue::from_static("Bearer secret"));
        let mut user = UserInfo::new("jane", &["ops"]);
        user.extra.insert("example.com/Scope".into(), vec!["a".into(), "b".into()]);
        let sent = headers(&of, &user);
        let all = |name: &str| sent.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(all("x-remote-user"), ["jane"]);
        assert_eq!(all("x-remote-group"), ["ops", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-example.com%2f%53cope"), ["a", "b"]);
        assert!(all("x-remote-extra-a").is_empty() && all("authorization").is_empty());
        assert_eq!(all("accept"), ["text/plain"]);
    }
}
