//! What a pod's guests see of the network: their address, their own loopback, Services and names.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    affinity::Directory,
    names::{Found, Search},
    netns::Netns,
    protocol::{SandboxSpec, Transport},
    routes::{Ranges, Refusal},
};

/// The network of one pod. A guest's 127.0.0.1 is `loopback`, an address that no other pod may reach.
pub(crate) struct PodNetwork {
    pub address: Ipv4Addr,
    pub loopback: Ipv4Addr,
    /// Where its sockets are made, when not among the host's own.
    netns: Option<Netns>,
    hostname: String,
    search: Search,
    ranges: Ranges,
    directory: Arc<Directory>,
    /// Ports bound on every address of the pod, and how often: its loopback leads there too.
    everywhere: Mutex<HashMap<u16, usize>>,
    /// Sockets that its guests hold.
    sockets: AtomicUsize,
}

/// The most sockets that the guests of a pod hold at once: descriptors are the whole host's.
const MAX_SOCKETS: usize = 1024;

/// A connection as the host has to make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    pub to: SocketAddr,
    /// The address to bind first, so that the peer sees who calls.
    pub from: Option<Ipv4Addr>,
}

/// What a guest's name leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// None: there is no such name.
    Addresses(Vec<IpAddr>),
    /// Names of other domains, which the host's resolver may know: see [`elsewhere`].
    Elsewhere(Vec<String>),
}

/// The addresses of the first of these names of other domains that has any, by the host's resolver, which does not complete
/// them; those of the host itself are left out.
pub(crate) async fn elsewhere(names: Vec<String>) -> Vec<IpAddr> {
    let ask = async {
        for name in names {
            let Ok(found) = tokio::net::lookup_host((format!("{name}."), 0)).await else { continue };
            let found: Vec<_> = found.map(|address| address.ip()).filter(|ip| !ip.is_loopback()).collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    };
    tokio::time::timeout(Duration::from_secs(10), ask).await.unwrap_or_default()
}

impl PodNetwork {
    /// The network of a sandbox.
    ///
    /// # Errors
    /// When the pod's network namespace is not there.
    pub fn new(spec: &SandboxSpec, ranges: Ranges, directory: Arc<Directory>) -> io::Result<PodNetwork> {
        let [_, b, c, d] = spec.pod_ip.octets();
        let netns = spec.netns.as_deref().map(Netns::open).transpose()?;
        Ok(PodNetwork {
            address: spec.pod_ip,
            loopback: match netns {
                // Its own, which it shares with the pod's Linux containers.
                Some(_) => Ipv4Addr::LOCALHOST,
                // The pod's twin in the upper half of 127/8, where no pod or Service lives.
                None => Ipv4Addr::new(127, b | 0x80, c, d),
            },
            netns,
            hostname: spec.hostname.to_ascii_lowercase(),
            search: Search::of(&spec.dns),
            ranges,
            directory,
            everywhere: Mutex::default(),
            sockets: AtomicUsize::new(0),
        })
    }

    /// Makes sockets where the pod's are made. It must not wait.
    pub fn within<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        match &self.netns {
            Some(netns) => netns.within(work),
            None => Ok(work()),
        }
    }

    /// Makes a socket where the pod's are made.
    pub async fn run<F: Future>(&self, work: F) -> io::Result<F::Output> {
        match &self.netns {
            Some(netns) => netns.run(work).await,
            None => Ok(work.await),
        }
    }

    /// The address that a handler listens on: a namespace has more than the pod's own.
    pub fn listening(&self) -> Ipv4Addr {
        if self.netns.is_some() { Ipv4Addr::UNSPECIFIED } else { self.address }
    }

    /// The address to bind when a guest binds `address`; `None` when it is none of the pod's.
    pub fn bind(&self, address: SocketAddr) -> Option<SocketAddr> {
        let IpAddr::V4(ip) = address.ip() else { return None };
        let ip = if ip.is_unspecified() && self.netns.is_some() {
            ip
        } else if ip.is_unspecified() || ip == self.address {
            self.address
        } else if ip == Ipv4Addr::LOCALHOST {
            self.loopback
        } else {
            return None;
        };
        Some(SocketAddr::new(ip.into(), address.port()))
    }

    /// How to connect (or send) when a guest connects to `to`.
    pub fn connect(&self, transport: Transport, to: SocketAddr) -> Result<Hop, Refusal> {
        let routes = self.directory.load();
        let SocketAddr::V4(to) = to else {
            let fine = routes.may_reach(&self.ranges, to);
            return if fine { Ok(Hop { to, from: None }) } else { Err(Refusal::Denied) };
        };
        if self.netns.is_some() && to.ip().is_loopback() {
            return Ok(Hop { to: to.into(), from: None });
        }
        if *to.ip() == Ipv4Addr::LOCALHOST || *to.ip() == self.loopback {
            let everywhere = self.everywhere.lock().contains_key(&to.port());
            let ip = if everywhere { self.address } else { self.loopback };
            return Ok(Hop { to: SocketAddrV4::new(ip, to.port()).into(), from: Some(ip) });
        }
        let hop = routes.connect(&self.ranges, transport, to, |service| {
            self.directory.pick(transport, to, self.address, service)
        })?;
        if !routes.policies.may_send(transport, self.address, hop) {
            return Err(Refusal::Policy);
        }
        Ok(self.hop(hop.into()))
    }

    /// How to make a connection to where [`PodNetwork::connect`] has led.
    pub fn hop(&self, to: SocketAddr) -> Hop {
        let from = match to.ip() {
            IpAddr::V4(ip) if ip == self.loopback && self.netns.is_none() => Some(self.loopback),
            // A source in 127/8 is routable only to 127/8.
            IpAddr::V4(ip) => (ip.is_loopback() == self.address.is_loopback()).then_some(self.address),
            IpAddr::V6(_) => None,
        };
        Hop { to, from }
    }

    /// Another number whenever policies are others: connections made before are not to be used again.
    pub fn policies_epoch(&self) -> u64 {
        self.directory.load().policies_epoch
    }

    /// Whether the pod's policies let it receive at `to` from this peer.
    pub fn may_receive(&self, transport: Transport, from: SocketAddr, to: SocketAddr) -> bool {
        match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                self.directory.load().policies.may_receive(transport, *from.ip(), to)
            }
            _ => true,
        }
    }

    /// Whether the pod's policies let its guests accept a connection from this peer.
    pub fn may_accept(&self, from: SocketAddr) -> bool {
        let SocketAddr::V4(from) = from else { return true };
        if *from.ip() == self.loopback {
            return true;
        }
        let ports: Vec<u16> = self.everywhere.lock().keys().copied().collect();
        self.directory.load().policies.may_accept(*from.ip(), self.address, &ports)
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
        let ip = address.ip();
        ip == IpAddr::V4(self.address)
            || ip == IpAddr::V4(self.loopback)
            || (self.netns.is_some() && ip.is_unspecified() && ip.is_ipv4())
    }

    /// Whether the pod may reach this address: the guard behind [`PodNetwork::connect`].
    pub fn may_reach(&self, to: SocketAddr) -> bool {
        self.owns(to)
            || (self.netns.is_some() && to.ip().is_loopback())
            || self.directory.load().may_reach(&self.ranges, to)
    }

    /// What a name leads to, as the pod's resolver would answer.
    pub fn lookup(&self, name: &str) -> Lookup {
        if let Ok(ip) = name.parse::<IpAddr>() {
            return Lookup::Addresses(vec![ip]);
        }
        let bare = name.trim_end_matches('.').to_ascii_lowercase();
        if bare == "localhost" {
            return Lookup::Addresses(vec![Ipv4Addr::LOCALHOST.into()]);
        }
        if bare == self.hostname {
            return Lookup::Addresses(vec![self.address.into()]);
        }
        match self.directory.load().lookup(&self.ranges, name, &self.search) {
            Found::Addresses(found) => Lookup::Addresses(found.into_iter().map(IpAddr::V4).collect()),
            Found::Elsewhere(names) => Lookup::Elsewhere(names),
            Found::Nothing => Lookup::Addresses(Vec::new()),
        }
    }

    /// As [`PodNetwork::lookup`], and names of other domains from the resolver of the host, where the cluster asks it.
    pub async fn resolve(&self, name: &str) -> Vec<IpAddr> {
        match self.lookup(name) {
            Lookup::Addresses(found) => found,
            Lookup::Elsewhere(names) => elsewhere(names).await,
        }
    }

    /// Room for one more socket of the pod's guests, which may ask at once; `None`: they have as many as they may.
    pub fn room(self: &Arc<Self>) -> Option<SocketRoom> {
        let more = |held| (held < MAX_SOCKETS).then_some(held + 1);
        let taken = self.sockets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| SocketRoom(self.clone()))
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

/// Room for one socket in the number that a pod may have, given back when it is dropped.
pub struct SocketRoom(Arc<PodNetwork>);

impl Drop for SocketRoom {
    fn drop(&mut self) {
        self.0.sockets.fetch_sub(1, Ordering::Relaxed);
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
