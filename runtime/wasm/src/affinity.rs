//! The Service table in use, and which endpoint each client of a Service with session affinity keeps.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use std::sync::Arc;

use crate::{
    network::fastrand,
    protocol::{ServiceTable, Transport},
    routes::{Routes, Service},
};

/// The most clients that are remembered; past it all are forgotten, and choose anew.
const MAX_CLIENTS: usize = 65_536;

type Client = (Transport, SocketAddrV4, Ipv4Addr);

/// What guests and listeners ask for the way.
#[derive(Default)]
pub(crate) struct Directory {
    routes: ArcSwap<Routes>,
    kept: Mutex<HashMap<Client, (SocketAddrV4, Instant)>>,
}

impl Directory {
    /// The table as it is now.
    pub fn load(&self) -> Guard<Arc<Routes>> {
        self.routes.load()
    }

    /// Replaces the table. One writer at a time.
    pub fn store(&self, table: &ServiceTable) {
        let (mut next, last) = (Routes::new(table), self.routes.load());
        next.policies_epoch = last.policies_epoch + u64::from(next.policies != last.policies);
        self.routes.store(Arc::new(next));
    }

    /// The index of the endpoint for a client of the Service address `to`; 0 when there is none.
    pub fn pick(&self, transport: Transport, to: SocketAddrV4, client: Ipv4Addr, service: &Service) -> usize {
        let any = fastrand(service.endpoints.len());
        let Some(seconds) = service.affinity else { return any };
        let now = Instant::now();
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_CLIENTS {
            kept.clear();
        }
        let key = (transport, to, client);
        let before = kept.get(&key).filter(|(_, seen)| now - *seen < Duration::from_secs(seconds.into()));
        let index = before.and_then(|(endpoint, _)| service.endpoints.iter().position(|e| e == endpoint));
        let index = index.unwrap_or(any);
        if let Some(endpoint) = service.endpoints.get(index) {
            kept.insert(key, (*endpoint, now));
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_endpoint_while_it_is_there() {
        let directory = Directory::default();
        let at = |n: u16| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), n);
        let mut service = Service { endpoints: (1..=20).map(at).collect(), affinity: Some(60) };
        let pick = |service: &Service| {
            service.endpoints[directory.pick(Transport::Tcp, at(80), Ipv4Addr::LOCALHOST, service)]
        };
        let first = pick(&service);
        assert!((0..20).all(|_| pick(&service) == first));
        service.endpoints.retain(|e| *e != first);
        let second = pick(&service);
        assert!(second != first && (0..20).all(|_| pick(&service) == second));
        service.affinity = Some(0);
        assert!((0..50).any(|_| pick(&service) != second), "expired at once");
    }
}
