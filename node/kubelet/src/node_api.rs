//! The node's own API (port 10250): what the API server fetches from a node. TLS; clients show a certificate of the cluster.

pub mod logs;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::Shared;

/// The user that the API server is.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
const ADMINISTRATORS: &str = "system:masters";
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The server, bound.
pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
}

impl Server {
    /// Listens; nothing is served yet.
    ///
    /// # Errors
    /// When the port is taken or a certificate cannot be read.
    pub async fn bind(
        address: (IpAddr, u16),
        serving: &(String, String),
        client_ca_pem: &str,
        shared: Arc<Shared>,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(client_ca_pem.as_bytes()) {
            roots.add(cert.context("read the clients' authority")?)?;
        }
        let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
        let chain = CertificateDer::pem_slice_iter(serving.0.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .context("read the serving certificate")?;
        let key = PrivateKeyDer::from_pem_slice(serving.1.as_bytes()).context("read the serving key")?;
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {}:{} for the node API", address.0, address.1))?;
        Ok(Self { listener, tls: TlsAcceptor::from(Arc::new(config)), router: router(shared) })
    }

    /// The port that is listened on.
    pub fn port(&self) -> u16 {
        self.listener.local_addr().map(|address| address.port()).unwrap_or_default()
    }

    /// Serves for ever.
    pub async fn serve(self) -> Result<()> {
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (tls, router) = (self.tls.clone(), self.router.clone());
            tokio::spawn(async move {
                if let Err(error) = connection(stream, peer, tls, router).await {
                    tracing::debug!(%peer, error = format!("{error:#}"), "a connection to the node API");
                }
            });
        }
    }
}

async fn connection(
    stream: tokio::net::TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await.context("TLS handshake")??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
    allowed(&certificate.context("a client without a certificate")?)
        .with_context(|| format!("refuse {peer}"))?;
    hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(router))
        .await
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// The API server and administrators may call; nobody else, nodes and other clients included.
fn allowed(certificate: &CertificateDer<'_>) -> Result<()> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)?;
    let subject = parsed.subject();
    let user = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let admin = subject.iter_organization().any(|group| group.as_str() == Ok(ADMINISTRATORS));
    if user != API_SERVER && !admin {
        bail!("user {user:?} may not use the node API");
    }
    Ok(())
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{*rest}", any(not_yet))
        .route("/attach/{*rest}", any(not_yet))
        .route("/portForward/{*rest}", any(not_yet))
        .with_state(shared)
}

async fn not_yet() -> Response {
    (StatusCode::NOT_IMPLEMENTED, "exec, attach and port-forward are not supported by this node yet\n")
        .into_response()
}

async fn container_logs(
    State(shared): State<Arc<Shared>>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<logs::Query>,
) -> Response {
    match logs::open(&shared, &namespace, &pod, &container, query).await {
        Ok(body) => body.into_response(),
        Err(logs::Error::NotFound(message)) => (StatusCode::NOT_FOUND, message).into_response(),
        Err(logs::Error::BadRequest(message)) => (StatusCode::BAD_REQUEST, message).into_response(),
        Err(logs::Error::Runtime(message)) => (StatusCode::INTERNAL_SERVER_ERROR, message).into_response(),
    }
}
