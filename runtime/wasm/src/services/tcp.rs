//! TCP connections to a Service address.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

use super::{Entry, accept, reset};
use crate::{
    handler::{self, Handler, Target},
    hosts::http::dial,
    network::Hop,
    switch::Switch,
};

/// How long an endpoint may take to accept before the next one is tried.
const CONNECT: Duration = Duration::from_secs(2);

/// One client of a listener.
struct Client {
    entry: Arc<Entry>,
    from: Ipv4Addr,
}

impl Entry {
    /// Accepts until the listener is closed.
    pub(super) async fn accept(self: Arc<Entry>, listener: TcpListener) {
        let closed = self.closed.clone();
        accept(listener, closed.cancelled(), |stream, peer| {
            let from = match peer.ip() {
                std::net::IpAddr::V4(ip) => ip,
                std::net::IpAddr::V6(_) => return reset(&stream),
            };
            tokio::spawn(Arc::new(Client { entry: self.clone(), from }).serve(stream));
        })
        .await;
    }

    /// The endpoints in the order in which a client tries them; those that their policies close to it are left out.
    pub(super) fn order(&self, client: Ipv4Addr) -> Vec<SocketAddrV4> {
        let service = self.service.load();
        let start = self.directory.pick(self.transport, self.address, client, &service);
        let routes = self.directory.load();
        let all = service.endpoints.iter().cycle().skip(start).take(service.endpoints.len());
        all.filter(|to| routes.policies.may_receive(self.transport, client, **to)).copied().collect()
    }
}

impl Client {
    /// A handler of this process that takes new requests.
    fn local(&self) -> Option<Arc<Handler>> {
        let order = self.entry.order(self.from);
        let handlers = self.entry.handlers.read();
        order.iter().find_map(|endpoint| handlers.get(endpoint).filter(|h| !h.draining.is_on()).cloned())
    }

    /// Leads one connection to an endpoint; closes it at once when none is ready.
    async fn serve(self: Arc<Client>, mut stream: TcpStream) {
        for endpoint in self.entry.order(self.from) {
            let local = self.entry.handlers.read().get(&endpoint).cloned();
            if let Some(handler) = local {
                if handler.draining.is_on() {
                    continue;
                }
                // The connection outlives its handler: later requests go to another one.
                let (close, killed) = (Switch::default(), Switch::default());
                return handler::serve(stream, self, Some(handler), close, killed).await;
            }
            if let Ok(Ok(mut there)) = tokio::time::timeout(CONNECT, dial(hop(self.from, endpoint))).await {
                let _ = (stream.set_nodelay(true), there.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
                return;
            }
        }
        reset(&stream);
    }
}

/// As the client, where this host can be it: the peer and its policies see who calls.
pub(super) fn hop(client: Ipv4Addr, endpoint: SocketAddrV4) -> Hop {
    let both = client.is_loopback() && endpoint.ip().is_loopback();
    Hop { to: SocketAddr::V4(endpoint), from: both.then_some(client) }
}

impl Target for Client {
    fn permits(&self) -> bool {
        // Without an endpoint at all the last one goes on, as long as it drains.
        self.entry.directory.load().policies.are_silent()
            || self.entry.service.load().endpoints.is_empty()
            || !self.entry.order(self.from).is_empty()
    }

    fn choose(&self, current: Option<&Arc<Handler>>) -> Option<Arc<Handler>> {
        match current {
            Some(current) if !current.draining.is_on() => Some(current.clone()),
            _ => self.local().or_else(|| {
                // The last one, while it drains, is better than none.
                current.filter(|c| !c.killed.is_on()).cloned()
            }),
        }
    }
}
