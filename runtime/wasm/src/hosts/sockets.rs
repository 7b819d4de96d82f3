//! wasi:sockets inside a pod. Addresses are rewritten before the stock implementation sees them, and its own check
//! of addresses stays behind that as a guard.

mod p2;
mod p3;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use wasmtime::component::{HasData, Linker};
use wasmtime_wasi::{
    WasiCtxBuilder,
    sockets::{SocketAddrUse, WasiSocketsCtxView},
};

use crate::{
    guest::Guest,
    network::{PodNetwork, SocketRoom},
};

/// Replaces the stock socket interfaces; call it with the stock set linked and shadowing allowed.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    use wasmtime_wasi::{p2::bindings::sockets as two, p3::bindings::sockets as three};
    two::tcp::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::udp::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::tcp_create_socket::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::udp_create_socket::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    two::ip_name_lookup::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    three::types::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)?;
    three::ip_name_lookup::add_to_linker::<Guest, PodSockets>(linker, Guest::pod_sockets)
}

/// What one instance gets.
pub(crate) fn prepare(wasi: &mut WasiCtxBuilder, network: &Arc<PodNetwork>) {
    let network = network.clone();
    wasi.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(false).socket_addr_check(
        move |address, purpose| {
            let fine = permitted(&network, address, purpose);
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
    open: HashMap<u32, SocketRoom>,
}

impl Bound {
    /// None yet.
    pub fn new(network: Arc<PodNetwork>) -> Bound {
        Bound { network, ports: HashMap::new(), open: HashMap::new() }
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
        self.open.insert(socket, room);
    }

    fn remove(&mut self, socket: u32) {
        self.open.remove(&socket);
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
