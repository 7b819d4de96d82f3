//! Service listeners: one a Service address and port, which lead to ready endpoints. A handler of this process answers
//! without a second hop.

mod tcp;
mod udp;

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    affinity::Directory,
    compile, dns,
    handler::Handler,
    protocol::{ListenerError, ServiceTable, Transport},
    routes::{Ranges, Service},
};

/// The handlers of this process by their address.
pub(crate) type Handlers = RwLock<HashMap<SocketAddrV4, Arc<Handler>>>;

/// The Service whose address answers DNS questions.
const DNS_SERVICE: &str = "kube-system/kube-dns";

/// What a listener leads to.
struct Entry {
    transport: Transport,
    address: SocketAddrV4,
    service: ArcSwap<Service>,
    handlers: Arc<Handlers>,
    directory: Arc<Directory>,
    /// Ends the listener; its connections live on.
    closed: CancellationToken,
}

/// The Service table at work.
pub(crate) struct Services {
    pub directory: Arc<Directory>,
    pub handlers: Arc<Handlers>,
    listeners: Mutex<HashMap<(Transport, SocketAddrV4), Arc<Entry>>>,
    dns: Mutex<Option<dns::Server>>,
    ranges: Ranges,
    file: PathBuf,
    /// Whether others may connect to Services here; guests of this process always may.
    listens: bool,
    /// One table after the other.
    turn: tokio::sync::Mutex<()>,
}

impl Services {
    /// An empty table, which is kept in `file` from the next one on.
    pub fn new(file: PathBuf, ranges: Ranges, listens: bool) -> Services {
        Services {
            directory: Arc::default(),
            handlers: Arc::default(),
            listeners: Mutex::default(),
            dns: Mutex::default(),
            ranges,
            file,
            listens,
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// Takes up the table that an earlier process kept.
    pub async fn restore(&self) {
        let Ok(bytes) = std::fs::read(&self.file) else { return };
        match postcard::from_bytes::<ServiceTable>(&bytes) {
            Ok(table) => drop(self.set(table).await),
            Err(error) => tracing::warn!(%error, "the kept Service table cannot be read"),
        }
    }

    /// Replaces the table. Listeners that stay are not touched.
    pub async fn set(&self, table: ServiceTable) -> Vec<ListenerError> {
        let _turn = self.turn.lock().await;
        self.directory.store(&table);
        let mut wanted: HashMap<(Transport, SocketAddrV4), (&str, Service)> = HashMap::new();
        let listened = table.services.iter().filter(|_| self.listens && !table.resolve_only);
        for service in listened {
            let address = SocketAddrV4::new(service.address, service.port);
            let entry = wanted
                .entry((service.transport, address))
                .or_insert_with(|| (&service.name, Service::default()));
            entry.1.endpoints.extend(&service.endpoints);
            entry.1.affinity = service.affinity_seconds;
        }
        self.listeners.lock().retain(|key, entry| {
            let keep = wanted.contains_key(key);
            if !keep {
                entry.closed.cancel();
            }
            keep
        });
        let mut errors = self.answer_dns(&table);
        for ((transport, address), (name, service)) in wanted {
            if let Err(error) = self.listen(transport, address, service) {
                errors.push(listener_error(name, transport, address, &error));
            }
        }
        self.keep(table).await;
        errors
    }

    fn answer_dns(&self, table: &ServiceTable) -> Vec<ListenerError> {
        let mut server = self.dns.lock();
        if server.as_ref().map(|s| &s.config) == table.dns.as_ref() {
            return Vec::new();
        }
        *server = None;
        let Some(config) = table.dns.as_ref().filter(|_| self.listens) else { return Vec::new() };
        match dns::Server::start(config.clone(), self.directory.clone(), self.ranges) {
            Ok(started) => {
                *server = Some(started);
                Vec::new()
            }
            Err((transport, error)) => match config.listen {
                SocketAddr::V4(address) => vec![listener_error(DNS_SERVICE, transport, address, &error)],
                SocketAddr::V6(_) => Vec::new(),
            },
        }
    }

    fn listen(&self, transport: Transport, address: SocketAddrV4, service: Service) -> io::Result<()> {
        let mut listeners = self.listeners.lock();
        if let Some(entry) = listeners.get(&(transport, address)) {
            entry.service.store(Arc::new(service));
            return Ok(());
        }
        let socket = shared_socket(transport, address.into())?;
        let entry = Arc::new(Entry {
            transport,
            address,
            service: ArcSwap::from_pointee(service),
            handlers: self.handlers.clone(),
            directory: self.directory.clone(),
            closed: CancellationToken::new(),
        });
        match transport {
            Transport::Tcp => {
                let listener = TcpListener::from_std(socket.into())?;
                tokio::spawn(entry.clone().accept(listener));
            }
            Transport::Udp => {
                let socket = tokio::net::UdpSocket::from_std(socket.into())?;
                tokio::spawn(entry.clone().relay(Arc::new(socket)));
            }
        }
        listeners.insert((transport, address), entry);
        Ok(())
    }

    async fn keep(&self, table: ServiceTable) {
        let file = self.file.clone();
        let kept = tokio::task::spawn_blocking(move || {
            let bytes = postcard::to_stdvec(&table).map_err(io::Error::other)?;
            compile::replace(&file, &bytes)
        });
        if let Ok(Err(error)) = kept.await {
            tracing::warn!(%error, "keeping the Service table on disk");
        }
    }
}

fn listener_error(
    service: &str,
    transport: Transport,
    address: SocketAddrV4,
    error: &io::Error,
) -> ListenerError {
    let permission_denied = error.kind() == io::ErrorKind::PermissionDenied;
    let hint = if permission_denied {
        "; ports below 1024 need root or the sysctl net.ipv4.ip_unprivileged_port_start"
    } else {
        ""
    };
    let message = format!("Service {service} at {address}: {error}{hint}");
    ListenerError { service: service.to_owned(), transport, address, message, permission_denied }
}

/// A bound socket (TCP ones listen) that other processes of this user may share: several hosts serve one Service address.
pub(crate) fn shared_socket(transport: Transport, address: SocketAddr) -> io::Result<Socket> {
    let (kind, protocol) = match transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if transport == Transport::Tcp {
        socket.listen(1024)?;
    }
    Ok(socket)
}

/// Accepts until `end`.
pub(crate) async fn accept(
    listener: TcpListener,
    end: impl Future<Output = ()>,
    mut each: impl FnMut(TcpStream, SocketAddr),
) {
    let mut end = std::pin::pin!(end);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.as_mut() => return,
        };
        match accepted {
            Ok((stream, peer)) => each(stream, peer),
            // Out of descriptors, mostly: the backlog waits.
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Ends a connection with a reset, so that its client hears at once that nobody is there.
pub(crate) fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
