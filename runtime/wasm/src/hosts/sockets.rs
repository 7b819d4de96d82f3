//! wasi:sockets inside a pod. Addresses are rewritten before the stock implementation sees them, and its own check
//! of addresses stays behind that as a guard.

mod p2;
mod p3;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use wasmtime::component::{HasData, Linker};
use wasmtime_wasi::{
    WasiCtxBuilder,
    sockets::{SocketAddrUse, WasiSocketsCtxView},
};

use crate::{
    engine::Abi,
    guest::Guest,
    network::{PodNetwork, SocketRoom},
};

/// Replaces the stock socket interfaces; call it with the stock set linked and shadowing allowed.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>, abi: Abi) -> wasmtime::Result<()> {
    use wasmtime_wasi::{p2::bindings::sockets as two, p3::bindings::sockets as three};
    two::tcp::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::udp::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::tcp_create_socket::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::udp_create_socket::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::ip_name_lookup::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    if abi == Abi::Sync {
        return Ok(());
    }
    three::types::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    three::ip_name_lookup::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)
}

/// What one instance gets.
pub(crate) fn prepare(wasi: &mut WasiCtxBuilder, bound: &Bound) {
    let (network, accepted) = (bound.network.clone(), bound.accepted.clone());
    wasi.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(false).socket_addr_check(
        move |address, purpose| {
            let accept = matches!(purpose, SocketAddrUse::TcpAccept);
            let fine = permitted(&network, address, purpose) && (!accept || accepted.enter(&network));
            Box::pin(async move { fine })
        },
    );
}

/// The guard: it sees addresses as they are after rewriting.
fn permitted(network: &PodNetwork, address: SocketAddr, purpose: SocketAddrUse) -> bool {
    match purpose {
        // Before a connection that is not bound to the pod (one that leaves the host), an implicit bind is announced.
        SocketAddrUse::TcpBind => {
            network.owns(address) || (address.ip().is_unspecified() && address.port() == 0)
        }
        SocketAddrUse::TcpListen | SocketAddrUse::UdpBind => network.owns(address),
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend => network.may_reach(address),
        SocketAddrUse::TcpAccept => network.may_accept(address),
        // An answer to what the pod sent cannot be told from the rest here.
        SocketAddrUse::UdpReceive => true,
    }
}

/// The sockets of one instance, counted against those of the pod, and which of them are bound on every address of it.
pub(crate) struct Bound {
    network: Arc<PodNetwork>,
    ports: HashMap<u32, u16>,
    open: HashMap<u32, Arc<SocketRoom>>,
    accepted: Arc<Accepted>,
}

/// Connections that WASI 0.3 accepts for a guest: it makes their sockets out of sight, so that they have room before they
/// are known by a number.
#[derive(Default)]
struct Accepted {
    /// Until a guest listens by WASI 0.3, those of 0.2 ask for room themselves.
    counts: AtomicBool,
    rooms: Mutex<Vec<SocketRoom>>,
}

impl Accepted {
    fn counts(&self) -> bool {
        self.counts.load(Ordering::Relaxed)
    }

    /// Whether there is room for one more, which it has from now on.
    fn enter(&self, network: &Arc<PodNetwork>) -> bool {
        if !self.counts() {
            return true;
        }
        let room = network.room();
        let fits = room.is_some();
        self.rooms.lock().extend(room);
        fits
    }
}

impl Bound {
    /// None yet.
    pub fn new(network: Arc<PodNetwork>) -> Bound {
        Bound { network, ports: HashMap::new(), open: HashMap::new(), accepted: Arc::default() }
    }

    fn add(&mut self, socket: u32, port: u16) {
        self.network.bound_everywhere(port);
        if let Some(before) = self.ports.insert(socket, port) {
            self.network.unbound(before);
        }
    }

    /// Room for one more socket of the instance.
    fn room(&self) -> Option<SocketRoom> {
        self.network.room()
    }

    fn open(&mut self, socket: u32, room: SocketRoom) {
        self.open.insert(socket, Arc::new(room));
    }

    /// The room of a socket, for what outlives it.
    fn room_of(&mut self, socket: u32) -> Option<Arc<SocketRoom>> {
        if !self.open.contains_key(&socket) {
            let room = self.accepted.rooms.lock().pop()?;
            self.open(socket, room);
        }
        self.open.get(&socket).cloned()
    }

    fn remove(&mut self, socket: u32) {
        // Who is not known by a number was accepted.
        if self.open.remove(&socket).is_none() {
            self.accepted.rooms.lock().pop();
        }
        if let Some(port) = self.ports.remove(&socket) {
            self.network.unbound(port);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        for port in self.ports.values() {
            self.network.unbound(*port);
        }
    }
}

/// Names the view for wasmtime's bindings.
pub(crate) struct PodSockets;

impl HasData for PodSockets {
    type Data<'a> = PodSocketsView<'a>;
}

/// The stock view and the pod's network.
pub(crate) struct PodSocketsView<'a> {
    pub inner: WasiSocketsCtxView<'a>,
    pub network: &'a PodNetwork,
    pub bound: &'a mut Bound,
}
