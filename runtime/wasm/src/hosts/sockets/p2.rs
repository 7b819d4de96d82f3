//! The 0.2 interfaces: tcp, udp and ip-name-lookup.

mod names;

use std::net::SocketAddr;

use futures::FutureExt;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, Network, SocketError, SocketResult,
    bindings::sockets::{
        network::{self, ErrorCode},
        tcp::{self, HostTcpSocket, IpAddressFamily, IpSocketAddress, ShutdownType, TcpSocket},
        tcp_create_socket,
        udp::{
            self, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram,
            IncomingDatagramStream, OutgoingDatagram, OutgoingDatagramStream, UdpSocket,
        },
        udp_create_socket,
    },
};

use super::PodSocketsView;
use crate::{network::SocketRoom, protocol::Transport, routes::Refusal};

/// A connection: its socket and both of its directions.
type Accepted = (Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>);

pub(super) fn code(refusal: Refusal) -> ErrorCode {
    match refusal {
        Refusal::Denied | Refusal::Policy => ErrorCode::AccessDenied,
        Refusal::NoEndpoint => ErrorCode::ConnectionRefused,
    }
}

impl network::HostNetwork for PodSocketsView<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        network::HostNetwork::drop(&mut self.inner, network)
    }
}

impl network::Host for PodSocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        network::Host::convert_error_code(&mut self.inner, error)
    }
    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        network::Host::network_error_code(&mut self.inner, error)
    }
}

impl PodSocketsView<'_> {
    fn room_p2(&self) -> SocketResult<SocketRoom> {
        self.bound.room().ok_or_else(|| ErrorCode::NewSocketLimit.into())
    }
}

impl tcp::Host for PodSocketsView<'_> {}

impl tcp_create_socket::Host for PodSocketsView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let room = self.room_p2()?;
        let create = || tcp_create_socket::Host::create_tcp_socket(&mut self.inner, family);
        let made = self.network.within(create).unwrap_or_else(|_| Err(ErrorCode::Unknown.into()))?;
        self.bound.open(made.rep(), room);
        Ok(made)
    }
}

impl udp_create_socket::Host for PodSocketsView<'_> {
    async fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let room = self.room_p2()?;
        let create = udp_create_socket::Host::create_udp_socket(&mut self.inner, family);
        let made = self.network.run(create).await.unwrap_or_else(|_| Err(ErrorCode::Unknown.into()))?;
        self.bound.open(made.rep(), room);
        Ok(made)
    }
}

macro_rules! forward {
    ($trait:ident, $resource:ty; $($name:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        $(fn $name(&mut self, this: Resource<$resource>, $($argument: $type),*) -> $result {
            $trait::$name(&mut self.inner, this, $($argument),*)
        })*
    };
}

impl HostTcpSocket for PodSocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let asked: SocketAddr = address.into();
        let address = self.network.bind(asked).ok_or(ErrorCode::AddressNotBindable)?;
        let rep = this.rep();
        HostTcpSocket::start_bind(&mut self.inner, this, network, address.into()).await?;
        if asked.ip().is_unspecified() {
            let this = Resource::new_borrow(rep);
            let bound: SocketAddr = HostTcpSocket::local_address(&mut self.inner, this)?.into();
            self.bound.add(rep, bound.port());
        }
        Ok(())
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let hop = self.network.connect(Transport::Tcp, address.into()).map_err(code)?;
        let (socket, net) = (this.rep(), network.rep());
        let again = || Resource::<TcpSocket>::new_borrow(socket);
        let unbound = HostTcpSocket::local_address(&mut self.inner, again()).is_err();
        if let (true, Some(from)) = (unbound, hop.from) {
            let from = SocketAddr::new(from.into(), 0).into();
            let bind = HostTcpSocket::start_bind(&mut self.inner, again(), Resource::new_borrow(net), from);
            // The guard answers at once, so this never waits.
            bind.now_or_never().unwrap_or_else(|| Err(ErrorCode::Unknown.into()))?;
            HostTcpSocket::finish_bind(&mut self.inner, again())?;
        }
        HostTcpSocket::start_connect(&mut self.inner, this, network, hop.to.into())
    }

    fn accept(&mut self, this: Resource<TcpSocket>) -> SocketResult<Accepted> {
        let room = if self.bound.accepted.counts() { None } else { Some(self.room_p2()?) };
        let accepted = HostTcpSocket::accept(&mut self.inner, this)?;
        match room {
            Some(room) => self.bound.open(accepted.0.rep(), room),
            None => drop(self.bound.room_of(accepted.0.rep())),
        }
        Ok(accepted)
    }

    async fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        HostTcpSocket::start_listen(&mut self.inner, this).await
    }

    fn local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::local_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::remote_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.bound.remove(this.rep());
        HostTcpSocket::drop(&mut self.inner, this)
    }

    forward! { HostTcpSocket, TcpSocket;
        finish_bind() -> SocketResult<()>;
        finish_connect() -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)>;
        finish_listen() -> SocketResult<()>;
        is_listening() -> wasmtime::Result<bool>;
        address_family() -> wasmtime::Result<IpAddressFamily>;
        set_listen_backlog_size(value: u64) -> SocketResult<()>;
        keep_alive_enabled() -> SocketResult<bool>;
        set_keep_alive_enabled(value: bool) -> SocketResult<()>;
        keep_alive_idle_time() -> SocketResult<u64>;
        set_keep_alive_idle_time(value: u64) -> SocketResult<()>;
        keep_alive_interval() -> SocketResult<u64>;
        set_keep_alive_interval(value: u64) -> SocketResult<()>;
        keep_alive_count() -> SocketResult<u32>;
        set_keep_alive_count(value: u32) -> SocketResult<()>;
        hop_limit() -> SocketResult<u8>;
        set_hop_limit(value: u8) -> SocketResult<()>;
        receive_buffer_size() -> SocketResult<u64>;
        set_receive_buffer_size(value: u64) -> SocketResult<()>;
        send_buffer_size() -> SocketResult<u64>;
        set_send_buffer_size(value: u64) -> SocketResult<()>;
        subscribe() -> wasmtime::Result<Resource<DynPollable>>;
        shutdown(how: ShutdownType) -> SocketResult<()>;
    }
}

impl udp::Host for PodSocketsView<'_> {}

impl HostUdpSocket for PodSocketsView<'_> {
    async fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = self.network.bind(address.into()).ok_or(ErrorCode::AddressNotBindable)?;
        HostUdpSocket::start_bind(&mut self.inner, this, network, address.into()).await
    }

    async fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<IncomingDatagramStream>, Resource<OutgoingDatagramStream>)> {
        let remote = match remote {
            Some(remote) => {
                Some(self.network.connect(Transport::Udp, remote.into()).map_err(code)?.to.into())
            }
            None => None,
        };
        HostUdpSocket::stream(&mut self.inner, this, remote).await
    }

    fn local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::local_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::remote_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.bound.remove(this.rep());
        HostUdpSocket::drop(&mut self.inner, this)
    }

    forward! { HostUdpSocket, UdpSocket;
        finish_bind() -> SocketResult<()>;
        address_family() -> wasmtime::Result<IpAddressFamily>;
        unicast_hop_limit() -> SocketResult<u8>;
        set_unicast_hop_limit(value: u8) -> SocketResult<()>;
        receive_buffer_size() -> SocketResult<u64>;
        set_receive_buffer_size(value: u64) -> SocketResult<()>;
        send_buffer_size() -> SocketResult<u64>;
        set_send_buffer_size(value: u64) -> SocketResult<()>;
        subscribe() -> wasmtime::Result<Resource<DynPollable>>;
    }
}

impl HostIncomingDatagramStream for PodSocketsView<'_> {
    fn receive(
        &mut self,
        this: Resource<IncomingDatagramStream>,
        max: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let mut datagrams = HostIncomingDatagramStream::receive(&mut self.inner, this, max)?;
        for datagram in &mut datagrams {
            datagram.remote_address = self.network.present(datagram.remote_address.into()).into();
        }
        Ok(datagrams)
    }

    forward! { HostIncomingDatagramStream, IncomingDatagramStream;
        subscribe() -> wasmtime::Result<Resource<DynPollable>>;
        drop() -> wasmtime::Result<()>;
    }
}

impl HostOutgoingDatagramStream for PodSocketsView<'_> {
    fn send(
        &mut self,
        this: Resource<OutgoingDatagramStream>,
        mut datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        for datagram in &mut datagrams {
            if let Some(remote) = datagram.remote_address {
                let hop = self.network.connect(Transport::Udp, remote.into()).map_err(code)?;
                datagram.remote_address = Some(hop.to.into());
            }
        }
        HostOutgoingDatagramStream::send(&mut self.inner, this, datagrams)
    }

    async fn drop(&mut self, this: Resource<OutgoingDatagramStream>) -> wasmtime::Result<()> {
        HostOutgoingDatagramStream::drop(&mut self.inner, this).await
    }

    forward! { HostOutgoingDatagramStream, OutgoingDatagramStream;
        check_send() -> SocketResult<u64>;
        subscribe() -> wasmtime::Result<Resource<DynPollable>>;
    }
}
