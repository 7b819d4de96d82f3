//! Exec, Attach and PortForward: what the streaming server has the service do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use coracle_cri_api::v1;
use coracle_streaming::{Backend, Call, Dialled, Ended, Near};
use coracle_wasm::protocol::State as Life;
use tokio::net::TcpStream;
use tonic::Status;

use crate::linux::life;
use crate::service::Service;

/// How long a connection to a port of a pod may take.
const CONNECT: Duration = Duration::from_secs(10);

/// The service, as the streaming server sees it.
pub struct Streams(pub Arc<Service>);

#[async_trait]
impl Backend for Streams {
    async fn exec(&self, container: &str, command: Vec<String>, tty: bool, near: Near) -> Ended {
        let record = self.0.running(container).map_err(|s| s.message().to_owned())?;
        self.0.exec_in(&record, command, tty, near).await
    }

    async fn attach(&self, container: &str, stdin: bool, near: Near) -> Ended {
        let record = self.0.running(container).map_err(|s| s.message().to_owned())?;
        if !record.linux {
            let host = self.0.host_of(&record.sandbox_id).map_err(|s| s.message().to_owned())?;
            let host = host.socket().ok_or("the wasm host does not answer")?;
            let ended = coracle_wasm::client::attach(&host, &record.id, stdin, near).await;
            return ended.map_err(|e| e.to_string());
        }
        let engine = self.0.linux.engine().map_err(|s| s.message().to_owned())?;
        let state = engine.attach(&record.id, stdin, near).await.map_err(|e| format!("{e:#}"))?;
        match state.map(life) {
            Some(Life::Exited { exit_code, .. }) => Ok(exit_code),
            _ => Ok(0),
        }
    }

    async fn connect(&self, sandbox: &str, port: u16) -> io::Result<Dialled> {
        let record = self.0.sandbox(sandbox).map_err(|s| io::Error::other(s.message().to_owned()))?;
        if !record.ready {
            return Err(io::Error::other("the pod does not run"));
        }
        let stream = match self.0.netns(&record) {
            None => {
                let ip = if record.host_network { Ipv4Addr::LOCALHOST } else { record.ip };
                tokio::time::timeout(CONNECT, TcpStream::connect((ip, port))).await??
            }
            Some(netns) => {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                let dial = move || std::net::TcpStream::connect_timeout(&address, CONNECT);
                let inside = move || coracle_oci::namespaces::within(&netns, dial);
                let stream = tokio::task::spawn_blocking(inside).await.map_err(io::Error::other)??;
                stream.set_nonblocking(true)?;
                TcpStream::from_std(stream)?
            }
        };
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

impl Service {
    fn url(&self, call: Call) -> Result<String, Status> {
        let server =
            self.streaming.get().ok_or_else(|| Status::unavailable("the streaming server does not run"))?;
        server.url(call).map_err(|e| Status::resource_exhausted(e.to_string()))
    }

    /// Where to go to run one more program in a container.
    pub fn exec_url(&self, request: v1::ExecRequest) -> Result<String, Status> {
        let record = self.running(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(Status::invalid_argument("no command is given"));
        }
        let v1::ExecRequest { cmd: command, tty, stdin, stdout, stderr, .. } = request;
        self.url(Call::Exec { container: record.id, command, stdin, stdout, stderr, tty })
    }

    /// Where to go to join a container's own program.
    pub fn attach_url(&self, request: v1::AttachRequest) -> Result<String, Status> {
        let record = self.running(&request.container_id)?;
        let v1::AttachRequest { stdin, tty, stdout, stderr, .. } = request;
        if stdin && !record.config.stdin {
            return Err(Status::failed_precondition(format!(
                "container {} has no standard input: its spec does not ask for stdin",
                record.name()
            )));
        }
        self.url(Call::Attach { container: record.id, stdin, stdout, stderr, tty })
    }

    /// Where to go to reach ports of a pod.
    pub fn port_forward_url(&self, request: v1::PortForwardRequest) -> Result<String, Status> {
        let record = self.sandbox(&request.pod_sandbox_id)?;
        if !record.ready {
            return Err(Status::failed_precondition(format!("sandbox {} is not ready", record.id)));
        }
        let port = |p: &i32| {
            let port = u16::try_from(*p).ok().filter(|p| *p > 0);
            port.ok_or_else(|| Status::invalid_argument(format!("{p} is not a port")))
        };
        let ports = request.port.iter().map(port).collect::<Result<_, _>>()?;
        self.url(Call::PortForward { sandbox: record.id, ports })
    }
}
