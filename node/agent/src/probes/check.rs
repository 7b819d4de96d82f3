//! One look at a container: HTTP GET, a TCP connection, a command or gRPC's health service. Every look is bounded in
//! time and in bytes.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as Spec, HTTPGetAction, Probe};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::port;
use crate::runtime::Runtime;

mod grpc;
pub mod http;
mod tls;

/// The most of an answer that is read.
const MAX_BODY: usize = 10 << 10;

/// How often an answer that breaks off or stalls is asked for, as with the kubelet.
const TRIES: u32 = 3;

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

/// Looks once, for so long at most; the error is for people.
pub async fn check(probe: &Probe, target: &Target<'_>, limit: Duration) -> Result<Found, String> {
    if let Some(get) = &probe.http_get {
        return page(get, target, limit).await;
    }
    let look = async {
        if let Some(tcp) = &probe.tcp_socket {
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
    let looked = tokio::time::timeout(limit, look).await.map_err(|_| late(limit))?;
    looked.map(|()| Found::Fine)
}

fn late(limit: Duration) -> String {
    format!("no answer within {limit:?} (context deadline exceeded)")
}

/// What a probe makes of a page: of the first answer of a few whose body neither breaks off nor stalls. Each may take `limit`.
async fn page(get: &HTTPGetAction, target: &Target<'_>, limit: Duration) -> Result<Found, String> {
    let mut broken = String::new();
    for _ in 0..TRIES {
        let deadline = Instant::now() + limit;
        let answer = http::get(get, target, "probe");
        let answer = timeout_at(deadline, answer).await.map_err(|_| late(limit))??;
        let status = answer.status;
        match timeout_at(deadline, answer.beginning()).await {
            Ok(Ok(body)) => return judge(status, &body),
            Ok(Err(why)) => broken = why,
            Err(_) => broken = format!("the body of the answer stalls: {}", late(limit)),
        }
    }
    Ok(Found::Broken(broken))
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

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// All is well.
    Fine,
    /// It counts as well, and people are told these words.
    Warning(String),
    /// The answer broke off or stalled, which says nothing of the container: it counts neither way.
    Broken(String),
}

/// Pure: what a probe makes of an answer.
fn judge(status: u16, body: &str) -> Result<Found, String> {
    match status {
        200..300 => Ok(Found::Fine),
        300..400 => Ok(Found::Warning(format!("Probe terminated redirects, Response body: {body}"))),
        status => Err(format!("HTTP probe failed with statuscode: {status}")),
    }
}
