//! How a client reaches a runtime endpoint (`unix:///path`).

use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why there is no channel to a runtime endpoint.
#[derive(Debug)]
pub enum EndpointError {
    /// Not of the form `unix:///absolute/path`.
    Invalid(String),
    /// Nobody answers at the socket.
    Connect(String, tonic::transport::Error),
}

impl std::fmt::Display for EndpointError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(endpoint) => {
                write!(f, "runtime endpoint {endpoint:?} is not of the form unix:///absolute/path")
            }
            Self::Connect(endpoint, _) => write!(f, "connect to the runtime at {endpoint}"),
        }
    }
}

impl std::error::Error for EndpointError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Invalid(_) => None,
            Self::Connect(_, source) => Some(source),
        }
    }
}

/// The socket path of `unix:///path`, `unix:/path` or a bare absolute path.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, EndpointError> {
    let path =
        endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(EndpointError::Invalid(endpoint.to_owned()));
    }
    Ok(PathBuf::from(path))
}

fn template() -> Endpoint {
    // The URI is never resolved: the connector below opens the socket.
    Endpoint::from_static("http://runtime.localhost")
        .connect_timeout(Duration::from_secs(5))
        // Answers to calls that were given up count as errors, without end: the connection would end over them.
        .http2_max_local_error_reset_streams(None)
}

async fn open(path: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    UnixStream::connect(path).await.map(TokioIo::new)
}

/// Connects to `unix:///path`; fails when nobody listens. The channel reconnects by itself afterwards.
pub async fn connect(endpoint: &str) -> Result<Channel, EndpointError> {
    let path = socket_path(endpoint)?;
    template()
        .connect_with_connector(tower::service_fn(move |_: Uri| open(path.clone())))
        .await
        .map_err(|e| EndpointError::Connect(endpoint.to_owned(), e))
}

/// A channel to `unix:///path` that connects on first use and again whenever the connection is lost.
pub fn connect_lazy(endpoint: &str) -> Result<Channel, EndpointError> {
    let path = socket_path(endpoint)?;
    Ok(template().connect_with_connector_lazy(tower::service_fn(move |_: Uri| open(path.clone()))))
}
