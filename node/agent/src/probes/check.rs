//! One look at a container: HTTP GET, a TCP connection, a command or gRPC's health service. Every look is bounded in
//! time and in bytes.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container as Spec, HTTPGetAction, Probe};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::port;
use crate::runtime::Runtime;

mod grpc;
mod tls;

/// The most of an answer that is read.
const MAX_BODY: usize = 10 << 10;

/// What is looked at.
pub struct Target<'a> {
    /// The container's spec: its ports have names.
    pub spec: &'a Spec,
    /// The runtime's name of the container.
    pub id: &'a str,
    /// The pod's address.
    pub ip: &'a str,
    /// Commands run through it.
    pub runtime: &'a Runtime,
}

/// Looks once; the error is for people.
pub async fn check(probe: &Probe, target: &Target<'_>, limit: Duration) -> Result<(), String> {
    let look = async {
        if let Some(get) = &probe.http_get {
            http(get, target).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.ip);
            let port = port(target.spec, &tcp.port).ok_or("the probe's port does not exist")?;
            connect(host, port).await.map(drop)
        } else if let Some(command) = &probe.exec {
            exec(command.command.as_deref().unwrap_or_default(), target, limit).await
        } else if let Some(health) = &probe.grpc {
            let port = u16::try_from(health.port).map_err(|_| "the probe's port does not exist")?;
            grpc::check(target.ip, port, health.service.as_deref().unwrap_or_default()).await
        } else {
            Err("the probe says neither httpGet, tcpSocket, exec nor grpc".into())
        }
    };
    match tokio::time::timeout(limit, look).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {limit:?} (context deadline exceeded)")),
    }
}

/// Runs a command in the container; it has to end with 0.
pub async fn exec(command: &[String], target: &Target<'_>, limit: Duration) -> Result<(), String> {
    let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX).max(1);
    let done = target.runtime.exec_sync(target.id, command.to_vec(), seconds).await;
    let done = done.map_err(|status| status.message().to_owned())?;
    if done.exit_code == 0 {
        return Ok(());
    }
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(said.get(..MAX_BODY).unwrap_or(&said)).trim().to_owned();
    Err(if said.is_empty() { format!("command ended with exit code {}", done.exit_code) } else { said })
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))
}

/// GETs a page; any answer below 400 will do.
pub async fn http(get: &HTTPGetAction, target: &Target<'_>) -> Result<(), String> {
    let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(target.ip);
    let port = port(target.spec, &get.port).ok_or("the probe's port does not exist")?;
    let path = get.path.as_deref().unwrap_or("/");
    let secure = get.scheme.as_deref() == Some("HTTPS");
    let url = format!("{}://{host}:{port}{path}", if secure { "https" } else { "http" });
    let failed = |e: &dyn std::fmt::Display| format!("Get \"{url}\": {e}");
    let stream = connect(host, port).await.map_err(|e| failed(&e))?;
    let status = match secure {
        true => ask(get, host, port, path, tls::connect(host, stream).await.map_err(|e| failed(&e))?).await,
        false => ask(get, host, port, path, stream).await,
    };
    let status = status.map_err(|e| failed(&e))?;
    if (200..400).contains(&status) {
        return Ok(());
    }
    Err(format!("HTTP probe failed with statuscode: {status}"))
}

async fn ask(
    get: &HTTPGetAction,
    host: &str,
    port: u16,
    path: &str,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<u16, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let _abort = AbortOnDrop(connection.abort_handle());
    let mut request = http::Request::get(path)
        .header("Host", format!("{host}:{port}"))
        .header("User-Agent", "kube-probe/1.36")
        .header("Accept", "*/*")
        .header("Connection", "close");
    for header in get.http_headers.iter().flatten() {
        if let (true, Some(headers)) = (header.name.eq_ignore_ascii_case("host"), request.headers_mut()) {
            headers.remove("Host");
        }
        request = request.header(header.name.as_str(), header.value.as_str());
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    let _ = Limited::new(response.into_body(), MAX_BODY).collect().await;
    Ok(status.as_u16())
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
