//! The TCP side of a call to a webhook: a Service is dialled at an endpoint, everything else at its own address.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::ServiceResolver;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects to one webhook.
#[derive(Clone)]
pub(super) struct Dial {
    /// Namespace, name and port of the Service, if it is one.
    pub service: Option<(String, String, u16)>,
    pub resolver: Arc<dyn ServiceResolver>,
}

impl Dial {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let (host, port) = match &self.service {
            Some((namespace, name, port)) => {
                self.resolver.resolve(namespace, name, *port).await.map_err(io::Error::other)?
            }
            None => {
                let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                (host.to_owned(), uri.port_u16().unwrap_or(443))
            }
        };
        let dialing = TcpStream::connect((host.as_str(), port));
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, dialing).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(words(&host, port, &error)),
            Err(_) => return Err(io::Error::other(format!("dial tcp {host}:{port}: i/o timeout"))),
        };
        let _ = stream.set_nodelay(true);
        Ok(TokioIo::new(stream))
    }
}

fn words(host: &str, port: u16, error: &io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        _ if error.raw_os_error().is_none() => format!("lookup {host}: no such host"),
        _ => error.to_string(),
    };
    io::Error::other(format!("dial tcp {host}:{port}: {why}"))
}

impl Service<Uri> for Dial {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
