//! The 0.3 interfaces: types (tcp and udp sockets) and ip-name-lookup.

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::sync::oneshot;
use wasmtime::{
    AsContextMut, StoreContextMut,
    component::{Access, Accessor, FutureConsumer, FutureReader, Resource, Source, StreamReader},
};
use wasmtime_wasi::{
    p3::{
        bindings::sockets::{
            ip_name_lookup,
            types::{
                self, Duration, ErrorCode, HostTcpSocket, HostTcpSocketWithStore, HostUdpSocket,
                HostUdpSocketWithStore, IpAddress, IpAddressFamily, IpSocketAddress, TcpSocket, UdpSocket,
            },
        },
        sockets::{SocketError, SocketResult},
    },
    sockets::WasiSockets,
};

use super::{PodSockets, PodSocketsView};
use crate::{
    guest::Guest,
    network::{Lookup, SocketRoom, elsewhere},
    protocol::Transport,
    routes::Refusal,
};

fn code(refusal: Refusal) -> ErrorCode {
    match refusal {
        Refusal::Denied | Refusal::Policy => ErrorCode::AccessDenied,
        Refusal::NoEndpoint => ErrorCode::ConnectionRefused,
    }
}

impl types::Host for PodSocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        types::Host::convert_error_code(&mut self.inner, error)
    }
}

/// The stock interface on the same store.
fn stock<'a>(view: &'a mut Access<'_, Guest, PodSockets>) -> Access<'a, Guest, WasiSockets> {
    Access::<Guest, WasiSockets>::new(view.as_context_mut(), Guest::stock_sockets)
}

impl HostTcpSocketWithStore<Guest> for PodSockets {
    async fn connect(
        accessor: &Accessor<Guest, Self>,
        this: Resource<TcpSocket>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let rep = this.rep();
        let hop = accessor.with(|mut view| view.get().network.connect(Transport::Tcp, address.into()));
        let hop = hop.map_err(code)?;
        if let Some(from) = hop.from {
            accessor.with(|mut view| view.get().bind_unbound(rep, from))?;
        }
        let stock = accessor.with_getter::<WasiSockets>(Guest::stock_sockets);
        <WasiSockets as HostTcpSocketWithStore<Guest>>::connect(&stock, this, hop.to.into()).await
    }

    async fn listen(
        mut view: Access<'_, Guest, Self>,
        this: Resource<TcpSocket>,
    ) -> SocketResult<StreamReader<Resource<TcpSocket>>> {
        let address = view.get().network.address;
        view.get().bind_unbound(this.rep(), address)?;
        view.get().bound.accepted.counts.store(true, Ordering::Relaxed);
        <WasiSockets as HostTcpSocketWithStore<Guest>>::listen(stock(&mut view), this).await
    }

    fn send(
        mut view: Access<'_, Guest, Self>,
        this: Resource<TcpSocket>,
        data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        let room = view.get().bound.room_of(this.rep());
        let ended = <WasiSockets as HostTcpSocketWithStore<Guest>>::send(stock(&mut view), this, data)?;
        holding(&mut view, room, ended)
    }

    fn receive(
        mut view: Access<'_, Guest, Self>,
        this: Resource<TcpSocket>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Result<(), ErrorCode>>)> {
        let room = view.get().bound.room_of(this.rep());
        let (data, ended) = <WasiSockets as HostTcpSocketWithStore<Guest>>::receive(stock(&mut view), this)?;
        Ok((data, holding(&mut view, room, ended)?))
    }
}

/// What a stream of a socket comes to.
type Ended = Result<(), ErrorCode>;

/// The end of a stream, which has room until then: a guest may let its socket go before.
fn holding(
    view: &mut Access<'_, Guest, PodSockets>,
    room: Option<Arc<SocketRoom>>,
    ended: FutureReader<Ended>,
) -> wasmtime::Result<FutureReader<Ended>> {
    let (tell, told) = oneshot::channel();
    ended.pipe(view.as_context_mut(), Holding(Some((tell, room))))?;
    FutureReader::new(view.as_context_mut(), told)
}

struct Holding(Option<(oneshot::Sender<Ended>, Option<Arc<SocketRoom>>)>);

impl FutureConsumer<Guest> for Holding {
    type Item = Ended;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        store: StoreContextMut<Guest>,
        mut source: Source<'_, Ended>,
        _finish: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut ended = None;
        source.read(store, &mut ended)?;
        if let (Some(ended), Some((tell, _room))) = (ended, self.0.take()) {
            // Nobody listens where the guest does not want to know.
            let _ = tell.send(ended);
        }
        Poll::Ready(Ok(()))
    }
}

impl PodSocketsView<'_> {
    fn room_p3(&self) -> SocketResult<SocketRoom> {
        let full = || ErrorCode::Other(Some("the pod has as many sockets as it may".into()));
        self.bound.room().ok_or_else(|| full().into())
    }

    /// Binds a socket that the guest did not bind to an address of the pod.
    fn bind_unbound(&mut self, rep: u32, address: Ipv4Addr) -> SocketResult<()> {
        use futures::FutureExt;
        let this = || Resource::<TcpSocket>::new_borrow(rep);
        if HostTcpSocket::get_local_address(&mut self.inner, this()).is_ok() {
            return Ok(());
        }
        let address = SocketAddr::new(address.into(), 0).into();
        let bind = HostTcpSocket::bind(&mut self.inner, this(), address);
        // The guard answers at once, so this never waits.
        bind.now_or_never().unwrap_or_else(|| Err(ErrorCode::Other(None).into()))
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
    async fn bind(&mut self, this: Resource<TcpSocket>, address: IpSocketAddress) -> SocketResult<()> {
        let asked: SocketAddr = address.into();
        let address = self.network.bind(asked).ok_or(ErrorCode::AddressNotBindable)?;
        let rep = this.rep();
        HostTcpSocket::bind(&mut self.inner, this, address.into()).await?;
        if asked.ip().is_unspecified() {
            let this = Resource::new_borrow(rep);
            let bound: SocketAddr = HostTcpSocket::get_local_address(&mut self.inner, this)?.into();
            self.bound.add(rep, bound.port());
        }
        Ok(())
    }

    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let room = self.room_p3()?;
        let made = self.network.within(|| HostTcpSocket::create(&mut self.inner, family));
        let made = made.unwrap_or_else(|_| Err(ErrorCode::Other(None).into()))?;
        self.bound.open(made.rep(), room);
        Ok(made)
    }

    fn get_local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::get_local_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn get_remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostTcpSocket::get_remote_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.bound.remove(this.rep());
        HostTcpSocket::drop(&mut self.inner, this)
    }

    forward! { HostTcpSocket, TcpSocket;
        get_is_listening() -> wasmtime::Result<bool>;
        get_address_family() -> wasmtime::Result<IpAddressFamily>;
        set_listen_backlog_size(value: u64) -> SocketResult<()>;
        get_keep_alive_enabled() -> SocketResult<bool>;
        set_keep_alive_enabled(value: bool) -> SocketResult<()>;
        get_keep_alive_idle_time() -> SocketResult<Duration>;
        set_keep_alive_idle_time(value: Duration) -> SocketResult<()>;
        get_keep_alive_interval() -> SocketResult<Duration>;
        set_keep_alive_interval(value: Duration) -> SocketResult<()>;
        get_keep_alive_count() -> SocketResult<u32>;
        set_keep_alive_count(value: u32) -> SocketResult<()>;
        get_hop_limit() -> SocketResult<u8>;
        set_hop_limit(value: u8) -> SocketResult<()>;
        get_receive_buffer_size() -> SocketResult<u64>;
        set_receive_buffer_size(value: u64) -> SocketResult<()>;
        get_send_buffer_size() -> SocketResult<u64>;
        set_send_buffer_size(value: u64) -> SocketResult<()>;
    }
}

impl HostUdpSocketWithStore<Guest> for PodSockets {
    async fn send(
        accessor: &Accessor<Guest, Self>,
        this: Resource<UdpSocket>,
        data: Vec<u8>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        let remote = match remote {
            Some(remote) => {
                let hop = accessor.with(|mut view| view.get().network.connect(Transport::Udp, remote.into()));
                Some(hop.map_err(code)?.to.into())
            }
            None => None,
        };
        let stock = accessor.with_getter::<WasiSockets>(Guest::stock_sockets);
        <WasiSockets as HostUdpSocketWithStore<Guest>>::send(&stock, this, data, remote).await
    }

    async fn receive(
        accessor: &Accessor<Guest, Self>,
        this: Resource<UdpSocket>,
    ) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let stock = accessor.with_getter::<WasiSockets>(Guest::stock_sockets);
        let (data, from) = <WasiSockets as HostUdpSocketWithStore<Guest>>::receive(&stock, this).await?;
        let from = accessor.with(|mut view| view.get().network.present(from.into()));
        Ok((data, from.into()))
    }
}

impl HostUdpSocket for PodSocketsView<'_> {
    async fn bind(&mut self, this: Resource<UdpSocket>, address: IpSocketAddress) -> SocketResult<()> {
        let address = self.network.bind(address.into()).ok_or(ErrorCode::AddressNotBindable)?;
        HostUdpSocket::bind(&mut self.inner, this, address.into()).await
    }

    async fn connect(&mut self, this: Resource<UdpSocket>, address: IpSocketAddress) -> SocketResult<()> {
        let hop = self.network.connect(Transport::Udp, address.into()).map_err(code)?;
        HostUdpSocket::connect(&mut self.inner, this, hop.to.into()).await
    }

    async fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let room = self.room_p3()?;
        let made = self.network.run(HostUdpSocket::create(&mut self.inner, family)).await;
        let made = made.unwrap_or_else(|_| Err(ErrorCode::Other(None).into()))?;
        self.bound.open(made.rep(), room);
        Ok(made)
    }

    fn get_local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::get_local_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn get_remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let address = HostUdpSocket::get_remote_address(&mut self.inner, this)?;
        Ok(self.network.present(address.into()).into())
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.bound.remove(this.rep());
        HostUdpSocket::drop(&mut self.inner, this)
    }

    forward! { HostUdpSocket, UdpSocket;
        disconnect() -> SocketResult<()>;
        get_address_family() -> wasmtime::Result<IpAddressFamily>;
        get_unicast_hop_limit() -> SocketResult<u8>;
        set_unicast_hop_limit(value: u8) -> SocketResult<()>;
        get_receive_buffer_size() -> SocketResult<u64>;
        set_receive_buffer_size(value: u64) -> SocketResult<()>;
        get_send_buffer_size() -> SocketResult<u64>;
        set_send_buffer_size(value: u64) -> SocketResult<()>;
    }
}

impl ip_name_lookup::Host for PodSocketsView<'_> {}

impl ip_name_lookup::HostWithStore<Guest> for PodSockets {
    async fn resolve_addresses(
        accessor: &Accessor<Guest, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, ip_name_lookup::ErrorCode>> {
        let found = match accessor.with(|mut view| view.get().network.lookup(&name)) {
            Lookup::Addresses(found) => found,
            Lookup::Elsewhere(names) => elsewhere(names).await,
        };
        if found.is_empty() {
            return Ok(Err(ip_name_lookup::ErrorCode::NameUnresolvable));
        }
        Ok(Ok(found.into_iter().map(Into::into).collect()))
    }
}
