//! What a pod's guests see of the network: their address, their own loopback, Services and names.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{
    protocol::SandboxSpec,
    routes::{Ranges, Refusal, Routes},
};

/// The network of one pod. A guest's 127.0.0.1 is `loopback`, an address that no other pod may reach.
pub(crate) struct PodNetwork {
    pub address: Ipv4Addr,
    pub loopback: Ipv4Addr,
    hostname: String,
    searches: Vec<String>,
    ranges: Ranges,
    routes: Arc<ArcSwap<Routes>>,
    /// Ports bound on every address of the pod, and how often: its loopback leads there too.
    everywhere: Mutex<HashMap<u16, usize>>,
}

/// A connection as the host has to make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub to: SocketAddr,
    /// The address to bind first, so that the peer sees who calls.
    pub from: Option<Ipv4Addr>,
}

impl PodNetwork {
    /// The network of a sandbox.
    pub fn new(spec: &SandboxSpec, ranges: Ranges, routes: Arc<ArcSwap<Routes>>) -> PodNetwork {
        let [_, b, c, d] = spec.pod_ip.octets();
        PodNetwork {
            address: spec.pod_ip,
            // The pod's twin in the upper half of 127/8, where no pod or Service lives.
            loopback: Ipv4Addr::new(127, b | 0x80, c, d),
            hostname: spec.hostname.to_ascii_lowercase(),
            searches: spec.dns.searches.clone(),
            ranges,
            routes,
            everywhere: Mutex::default(),
        }
    }

    /// The address to bind when a guest binds `address`; `None` when it is none of the pod's.
    pub fn bind(&self, address: SocketAddr) -> Option<SocketAddr> {
        let IpAddr::V4(ip) = address.ip() else { return None };
        let ip = if ip.is_unspecified() || ip == self.address {
            self.address
        } else if ip == Ipv4Addr::LOCALHOST {
            self.loopback
        } else {
            return None;
        };
        Some(SocketAddr::new(ip.into(), address.port()))
    }

    /// How to connect when a guest connects to `to`.
    pub fn connect(&self, to: SocketAddr) -> Result<Hop, Refusal> {
        let SocketAddr::V4(to) = to else {
            let fine = self.routes.load().may_reach(&self.ranges, to);
            return if fine { Ok(Hop { to, from: None }) } else { Err(Refusal::Denied) };
        };
        if *to.ip() == Ipv4Addr::LOCALHOST || *to.ip() == self.loopback {
            let everywhere = self.everywhere.lock().contains_key(&to.port());
            let ip = if everywhere { self.address } else { self.loopback };
            return Ok(Hop { to: SocketAddrV4::new(ip, to.port()).into(), from: Some(ip) });
        }
        let routes = self.routes.load();
        let hop = routes.connect(&self.ranges, to, fastrand)?;
        // A source in 127/8 is routable only to 127/8.
        let same = hop.ip().is_loopback() == self.address.is_loopback();
        Ok(Hop { to: hop.into(), from: same.then_some(self.address) })
    }

    /// An address as the guest knows it.
    pub fn present(&self, address: SocketAddr) -> SocketAddr {
        if address.ip() == IpAddr::V4(self.loopback) {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
        } else {
            address
        }
    }

    /// Whether the pod may bind here: the guard behind [`PodNetwork::bind`].
    pub fn owns(&self, address: SocketAddr) -> bool {
        address.ip() == IpAddr::V4(self.address) || address.ip() == IpAddr::V4(self.loopback)
    }

    /// Whether the pod may reach this address: the guard behind [`PodNetwork::connect`].
    pub fn may_reach(&self, to: SocketAddr) -> bool {
        self.owns(to) || self.routes.load().may_reach(&self.ranges, to)
    }

    /// The addresses of a name, as the pod's resolver would answer.
    pub fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Some(vec![ip]);
        }
        let bare = name.trim_end_matches('.').to_ascii_lowercase();
        if bare == "localhost" {
            return Some(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        if bare == self.hostname {
            return Some(vec![self.address.into()]);
        }
        let routes = self.routes.load();
        let found = routes.lookup(name, &self.searches)?;
        Some(found.iter().map(|ip| IpAddr::V4(*ip)).collect())
    }

    /// A port is bound on every address of the pod.
    pub fn bound_everywhere(&self, port: u16) {
        *self.everywhere.lock().entry(port).or_default() += 1;
    }

    /// The socket of [`PodNetwork::bound_everywhere`] is gone.
    pub fn unbound(&self, port: u16) {
        let mut everywhere = self.everywhere.lock();
        if let Some(count) = everywhere.get_mut(&port) {
            *count -= 1;
            if *count == 0 {
                everywhere.remove(&port);
            }
        }
    }
}

/// A number below `n`, different from call to call; 0 when `n` is 0.
pub(crate) fn fastrand(n: usize) -> usize {
    use std::hash::{BuildHasher, Hasher, RandomState};
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };
    static SEED: OnceLock<u64> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let seed = *SEED.get_or_init(|| RandomState::new().build_hasher().finish());
    // SplitMix64: spreads a counter evenly.
    let mut z = seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % (n.max(1) as u64)) as usize
}
