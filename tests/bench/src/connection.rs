//! One client of the API server: a TLS connection that speaks HTTP/2, with bodies made beforehand, so that the client costs
//! as little of the shared cores as it can.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one request may take.
const LIMIT: Duration = Duration::from_secs(10);

/// What to ask of the server.
pub struct Ask {
    pub method: http::Method,
    pub path: String,
    pub body: Bytes,
}

impl Ask {
    pub fn get(path: String) -> Self {
        Self { method: http::Method::GET, path, body: Bytes::new() }
    }

    pub fn post(path: String, body: Bytes) -> Self {
        Self { method: http::Method::POST, path, body }
    }

    pub fn put(path: String, body: Bytes) -> Self {
        Self { method: http::Method::PUT, path, body }
    }

    pub fn delete(path: String) -> Self {
        Self { method: http::Method::DELETE, path, body: Bytes::new() }
    }
}

/// Where the server is and how to prove who asks.
#[derive(Clone)]
pub struct Endpoint {
    authority: Arc<str>,
    host: Arc<str>,
    port: u16,
    tls: TlsConnector,
}

impl Endpoint {
    /// Reads a kubeconfig whose user has a client certificate.
    pub async fn read(kubeconfig: &Path) -> Result<Self> {
        let read = Kubeconfig::read_from(kubeconfig)
            .with_context(|| format!("read the kubeconfig {}", kubeconfig.display()))?;
        let config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        let host = config.cluster_url.host().context("the kubeconfig's server has no host")?;
        let port = config.cluster_url.port_u16().unwrap_or(443);
        let mut tls = config.rustls_client_config()?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            authority: format!("{host}:{port}").into(),
            host: host.trim_matches(['[', ']']).into(),
            port,
            tls: Arc::new(tls).into(),
        })
    }

    /// Opens a connection of its own.
    pub async fn connect(&self) -> Result<Connection> {
        let opened = tokio::time::timeout(LIMIT, self.open()).await;
        opened.context("no connection within 10 s")?.with_context(|| format!("connect to {}", self.authority))
    }

    async fn open(&self) -> Result<Connection> {
        let stream = TcpStream::connect((&*self.host, self.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(self.host.to_string())?;
        let stream = self.tls.connect(name, stream).await?;
        let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(Connection { authority: self.authority.clone(), sender })
    }
}

/// An open connection, which has one request in flight at a time.
pub struct Connection {
    authority: Arc<str>,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    /// Asks and reads the whole answer; its length in bytes. An answer other than 2xx is an error.
    pub async fn ask(&mut self, ask: Ask) -> Result<usize> {
        let (method, path) = (ask.method.clone(), ask.path.clone());
        let answer = tokio::time::timeout(LIMIT, self.exchange(ask)).await;
        answer.context("no answer within 10 s").flatten().with_context(|| format!("{method} {path}"))
    }

    /// The body of an answer that lasts. The connection must live as long as it is read.
    pub async fn stream(&mut self, path: String) -> Result<Incoming> {
        let answer = tokio::time::timeout(LIMIT, self.send(Ask::get(path.clone()))).await;
        let response = answer.context("no answer within 10 s").flatten().with_context(|| path.clone())?;
        ensure!(response.status().is_success(), "{path} answered {}", response.status());
        Ok(response.into_body())
    }

    async fn send(&mut self, ask: Ask) -> Result<http::Response<Incoming>> {
        self.sender.ready().await?;
        let request = http::Request::builder()
            .method(ask.method)
            .uri(format!("https://{}{}", self.authority, ask.path))
            .header(http::header::ACCEPT, "application/json")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(ask.body))?;
        Ok(self.sender.send_request(request).await?)
    }

    async fn exchange(&mut self, ask: Ask) -> Result<usize> {
        let response = self.send(ask).await?;
        let status = response.status();
        let mut body = response.into_body();
        let (mut length, mut start) = (0, Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame?;
            let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
            length += data.len();
            if !status.is_success() && start.len() < 500 {
                start.extend_from_slice(data);
            }
        }
        ensure!(status.is_success(), "answered {status}: {}", String::from_utf8_lossy(&start));
        Ok(length)
    }
}
