//! One look at a container: HTTP GET or a TCP connection. Every look is bounded in time and in bytes.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container as Spec, HTTPGetAction, Probe};
use tokio::net::TcpStream;

use super::port;

/// The most of an answer that is read.
const MAX_BODY: usize = 10 << 10;

/// Looks once; the error is for people.
pub async fn check(probe: &Probe, spec: &Spec, ip: &str, limit: Duration) -> Result<(), String> {
    let look = async {
        if let Some(get) = &probe.http_get {
            http(get, spec, ip).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let host = tcp.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip);
            let port = port(spec, &tcp.port).ok_or("the probe's port does not exist")?;
            connect(host, port).await.map(drop)
        } else if probe.exec.is_some() {
            Err("exec probes are not supported: a wasm container has no second process; use httpGet or tcpSocket".into())
        } else if probe.grpc.is_some() {
            Err("gRPC probes are not supported yet by this node; use httpGet or tcpSocket".into())
        } else {
            Err("the probe says neither httpGet nor tcpSocket".into())
        }
    };
    match tokio::time::timeout(limit, look).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {limit:?} (context deadline exceeded)")),
    }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: connect: {e}"))
}

async fn http(get: &HTTPGetAction, spec: &Spec, ip: &str) -> Result<(), String> {
    if get.scheme.as_deref() == Some("HTTPS") {
        return Err("HTTPS probes are not supported yet by this node; use HTTP or tcpSocket".into());
    }
    let host = get.host.as_deref().filter(|h| !h.is_empty()).unwrap_or(ip);
    let port = port(spec, &get.port).ok_or("the probe's port does not exist")?;
    let path = get.path.as_deref().unwrap_or("/");
    let url = format!("http://{host}:{port}{path}");
    let failed = |e: &dyn std::fmt::Display| format!("Get \"{url}\": {e}");
    let stream = connect(host, port).await.map_err(|e| failed(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
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
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = response.status();
    let _ = Limited::new(response.into_body(), MAX_BODY).collect().await;
    if (200..400).contains(&status.as_u16()) {
        return Ok(());
    }
    Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
