//! Service listeners: one a Service address and port, which lead to ready endpoints. A handler of this process answers
//! without a second hop.

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
    compile,
    handler::{self, Handler, Target},
    hosts::http::dial,
    network::{Hop, fastrand},
    protocol::{ListenerError, ServiceTable},
    routes::Routes,
};

/// The handlers of this process by their address.
pub(crate) type Handlers = RwLock<HashMap<SocketAddrV4, Arc<Handler>>>;

/// How long an endpoint may take to accept before the next one is tried.
const CONNECT: Duration = Duration::from_secs(2);

/// What a listener leads to.
struct Entry {
    endpoints: ArcSwap<Vec<SocketAddrV4>>,
    handlers: Arc<Handlers>,
    /// Ends the listener; its connections live on.
    closed: CancellationToken,
}

/// The Service table at work.
pub(crate) struct Services {
    pub routes: Arc<ArcSwap<Routes>>,
    pub handlers: Arc<Handlers>,
    listeners: Mutex<HashMap<SocketAddrV4, Arc<Entry>>>,
    file: PathBuf,
    /// One table after the other.
    turn: tokio::sync::Mutex<()>,
}

impl Services {
    /// An empty table, which is kept in `file` from the next one on.
    pub fn new(file: PathBuf) -> Services {
        Services {
            routes: Arc::default(),
            handlers: Arc::default(),
            listeners: Mutex::default(),
            file,
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
        self.routes.store(Arc::new(Routes::new(&table)));
        let mut wanted: HashMap<SocketAddrV4, (&str, Vec<SocketAddrV4>)> = HashMap::new();
        for service in &table.services {
            let address = SocketAddrV4::new(service.address, service.port);
            let entry = wanted.entry(address).or_insert((&service.name, Vec::new()));
            entry.1.extend(&service.endpoints);
        }
        self.listeners.lock().retain(|address, entry| {
            let keep = wanted.contains_key(address);
            if !keep {
                entry.closed.cancel();
            }
            keep
        });
        let mut errors = Vec::new();
        for (address, (service, endpoints)) in wanted {
            if let Err(error) = self.listen(address, endpoints) {
                errors.push(listener_error(service, address, &error));
            }
        }
        self.keep(table).await;
        errors
    }

    fn listen(&self, address: SocketAddrV4, endpoints: Vec<SocketAddrV4>) -> io::Result<()> {
        let mut listeners = self.listeners.lock();
        if let Some(entry) = listeners.get(&address) {
            entry.endpoints.store(Arc::new(endpoints));
            return Ok(());
        }
        let listener = shared_listener(address)?;
        let entry = Arc::new(Entry {
            endpoints: ArcSwap::from_pointee(endpoints),
            handlers: self.handlers.clone(),
            closed: CancellationToken::new(),
        });
        listeners.insert(address, entry.clone());
        tokio::spawn(async move {
            let closed = entry.closed.clone();
            accept(listener, closed, |stream| {
                tokio::spawn(entry.clone().serve(stream));
            })
            .await;
        });
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

fn listener_error(service: &str, address: SocketAddrV4, error: &io::Error) -> ListenerError {
    let permission_denied = error.kind() == io::ErrorKind::PermissionDenied;
    let hint = if permission_denied {
        "; ports below 1024 need root or the sysctl net.ipv4.ip_unprivileged_port_start"
    } else {
        ""
    };
    let message = format!("Service {service} at {address}: {error}{hint}");
    ListenerError { service: service.to_owned(), address, message, permission_denied }
}

/// A listener that other processes of this user may share (several hosts serve one Service address).
fn shared_listener(address: SocketAddrV4) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::V4(address).into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Accepts until `end`.
pub(crate) async fn accept(listener: TcpListener, end: CancellationToken, mut each: impl FnMut(TcpStream)) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => each(stream),
            // Out of descriptors, mostly: the backlog waits.
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

impl Entry {
    /// A handler of this process that takes new requests, beginning at a chance one.
    fn local(&self) -> Option<Arc<Handler>> {
        let endpoints = self.endpoints.load();
        let handlers = self.handlers.read();
        let start = fastrand(endpoints.len());
        endpoints
            .iter()
            .cycle()
            .skip(start)
            .take(endpoints.len())
            .find_map(|endpoint| handlers.get(endpoint).filter(|h| !h.draining.is_cancelled()).cloned())
    }

    /// Leads one connection to an endpoint; closes it at once when none is ready.
    async fn serve(self: Arc<Entry>, mut stream: TcpStream) {
        let endpoints = self.endpoints.load_full();
        let start = fastrand(endpoints.len());
        for endpoint in endpoints.iter().cycle().skip(start).take(endpoints.len()) {
            let local = self.handlers.read().get(endpoint).cloned();
            if let Some(handler) = local {
                if handler.draining.is_cancelled() {
                    continue;
                }
                // The connection outlives its handler: later requests go to another one.
                let (close, killed) = (CancellationToken::new(), CancellationToken::new());
                return handler::serve(stream, self, Some(handler), close, killed).await;
            }
            let hop = Hop { to: SocketAddr::V4(*endpoint), from: None };
            if let Ok(Ok(mut there)) = tokio::time::timeout(CONNECT, dial(hop)).await {
                let _ = (stream.set_nodelay(true), there.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
                return;
            }
        }
        // A reset, so that the client hears at once that nobody is there.
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

impl Target for Entry {
    fn choose(&self, current: Option<&Arc<Handler>>) -> Option<Arc<Handler>> {
        match current {
            Some(current) if !current.draining.is_cancelled() => Some(current.clone()),
            _ => self.local().or_else(|| {
                // The last one, while it drains, is better than none.
                current.filter(|c| !c.killed.is_cancelled()).cloned()
            }),
        }
    }
}
