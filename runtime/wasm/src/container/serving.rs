//! Running a component that exports a wasi:http handler: its listeners, and how it is drained.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use tokio::net::{TcpListener, TcpSocket};
use tokio_util::task::TaskTracker;

use super::{Container, Exit, Stop};
use crate::{
    handler::{self, Handler},
    memory::OverLimit,
    network::PodNetwork,
    protocol::{ErrorCode, HostError, Transport},
    services::{Handlers, accept, reset},
    switch::Switch,
};

/// How long a draining handler waits for clients to use their open connections once more, and so to learn that they close.
const LINGER: Duration = Duration::from_secs(1);

/// The most connections of clients to a container at once; further ones are refused.
const MAX_CONNECTIONS: usize = 4096;

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Why a handler is not served.
pub(super) enum Failure {
    /// It could not be started; the caller may try again.
    Refused(HostError),
    /// It was started and failed.
    Crashed(Exit),
}

/// A handler that is served.
pub(super) struct Serving {
    pub handler: Arc<Handler>,
    handlers: Arc<Handlers>,
    addresses: Vec<SocketAddrV4>,
    connections: TaskTracker,
    listeners: TaskTracker,
    /// Idle connections are closed.
    close: Switch,
    container: Arc<Container>,
}

/// A connection to the pod's own address: it stays with the handler.
struct Direct {
    handler: Arc<Handler>,
    network: Arc<PodNetwork>,
    peer: SocketAddr,
    address: SocketAddrV4,
}

impl handler::Target for Direct {
    fn choose(&self, _current: Option<&Arc<Handler>>) -> Option<Arc<Handler>> {
        Some(self.handler.clone())
    }

    fn permits(&self) -> bool {
        self.network.may_receive(Transport::Tcp, self.peer, self.address.into())
    }
}

/// Binds the ports, starts an instance, and listens.
pub(super) async fn start(container: &Arc<Container>, handlers: &Arc<Handlers>) -> Result<Serving, Failure> {
    let address = container.sandbox.spec.pod_ip;
    let mut listeners = Vec::new();
    for port in &container.ports {
        let address = SocketAddrV4::new(address, *port);
        let listener = listen(&container.sandbox.network, *port);
        let listener = listener.map_err(|error| Failure::Refused(taken(container, address, &error)))?;
        listeners.push((address, listener));
    }
    let handler = Handler::start(container.grants.clone(), &container.program).await;
    let handler = handler.map_err(|error| {
        container.grants.log.note(&format!("starting the handler: {error:?}"));
        let limit = container.grants.memory.limit();
        Failure::Crashed(match error.downcast_ref::<OverLimit>() {
            Some(_) => Exit::out_of_memory(limit),
            None => Exit::trap(format!("{error:#}")),
        })
    })?;
    let serving = Serving {
        handler: handler.clone(),
        handlers: handlers.clone(),
        addresses: listeners.iter().map(|(address, _)| *address).collect(),
        connections: TaskTracker::new(),
        listeners: TaskTracker::new(),
        close: Switch::default(),
        container: container.clone(),
    };
    for (address, listener) in listeners {
        container.sandbox.network.bound_everywhere(address.port());
        handlers.write().insert(address, handler.clone());
        serving.listen(listener, address);
    }
    Ok(serving)
}

fn listen(network: &PodNetwork, port: u16) -> io::Result<TcpListener> {
    let socket = network.within(TcpSocket::new_v4)??;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddrV4::new(network.listening(), port).into())?;
    socket.listen(BACKLOG)
}

fn taken(container: &Container, address: SocketAddrV4, error: &io::Error) -> HostError {
    let pod = container.sandbox.pod();
    let port = address.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let words = format!("port {port} of pod {pod} ({address}) is in use");
            HostError::new(ErrorCode::PortInUse, words)
        }
        io::ErrorKind::PermissionDenied => {
            let words = format!(
                "port {port} of pod {pod} ({address}): not permitted; ports below 1024 need root or the sysctl \
                 net.ipv4.ip_unprivileged_port_start"
            );
            HostError::new(ErrorCode::FailedPrecondition, words)
        }
        _ => {
            let words = format!("listening on port {port} of pod {pod} ({address}): {error}");
            HostError::new(ErrorCode::Internal, words)
        }
    }
}

impl Serving {
    fn listen(&self, listener: TcpListener, address: SocketAddrV4) {
        let (handler, connections) = (self.handler.clone(), self.connections.clone());
        let close = self.close.clone();
        let network = self.container.sandbox.network.clone();
        self.listeners.spawn(async move {
            let killed = handler.killed.clone();
            let draining = handler.draining.clone();
            accept(listener, draining.turned_on(), |stream, peer| {
                // Descriptors are the whole host's: one pod's clients do not take them all.
                if connections.len() >= MAX_CONNECTIONS
                    || !network.may_receive(Transport::Tcp, peer, address.into())
                {
                    return reset(&stream);
                }
                let target =
                    Arc::new(Direct { handler: handler.clone(), network: network.clone(), peer, address });
                let (close, killed) = (close.clone(), killed.clone());
                connections.spawn(handler::serve(stream, target, None, close, killed));
            })
            .await;
        });
    }

    /// Serves until it is stopped or out of memory.
    pub async fn run(self, stop: &Stop) -> Exit {
        let exit = tokio::select! {
            biased;
            () = stop.kill.cancelled() => Exit::killed(),
            () = self.handler.over_limit.notified() => Exit::out_of_memory(self.container.grants.memory.limit()),
            () = stop.term.cancelled() => {
                self.handler.draining.turn_on();
                tokio::select! {
                    biased;
                    () = stop.kill.cancelled() => Exit::killed(),
                    () = self.drain() => Exit::code(0),
                }
            }
        };
        self.handler.draining.turn_on();
        self.handler.killed.turn_on();
        // As long as a listener is open its address is to be known as this handler's: others would connect to it, and be cut.
        self.listeners.close();
        self.listeners.wait().await;
        for address in &self.addresses {
            self.handlers.write().remove(address);
            self.container.sandbox.network.unbound(address.port());
        }
        self.connections.close();
        self.connections.wait().await;
        self.handler.clear();
        exit
    }

    /// Waits for what is in flight. Clients with an open connection get an answer that closes it; those that do not
    /// ask again within [`LINGER`] are closed while idle.
    async fn drain(&self) {
        self.connections.close();
        let _ = tokio::time::timeout(LINGER, self.connections.wait()).await;
        self.close.turn_on();
        self.connections.wait().await;
        self.handler.quiet().await;
    }
}
