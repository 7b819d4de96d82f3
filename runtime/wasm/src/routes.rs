//! Where an address or a name leads, by the Service table. Pure: what listens and connects is elsewhere.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use serde::{Deserialize, Serialize};

use crate::{
    names::{Found, Names, Search},
    policy::Policies,
    protocol::{ServiceTable, Transport},
};

/// A range of IPv4 addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    pub base: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `ip` lies in the range.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        let shift = 32 - u32::from(self.prefix.min(32));
        let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
        u32::from(ip) & mask == u32::from(self.base) & mask
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

impl std::str::FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Cidr, String> {
        let wrong = || format!("{text:?} is no IPv4 range such as 127.64.0.0/11");
        let (base, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        if prefix > 32 {
            return Err(wrong());
        }
        Ok(Cidr { base: base.parse().map_err(|_| wrong())?, prefix })
    }
}

/// The ranges of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ranges {
    pub pods: Cidr,
    pub services: Cidr,
}

impl Default for Ranges {
    fn default() -> Ranges {
        Ranges {
            pods: Cidr { base: Ipv4Addr::new(127, 64, 0, 0), prefix: 11 },
            services: Cidr { base: Ipv4Addr::new(127, 96, 0, 0), prefix: 12 },
        }
    }
}

/// Why a guest may not connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The host's own loopback, or another pod's.
    #[error("the address belongs to the host")]
    Denied,
    /// A Service without a ready endpoint, or a Service address that nobody has.
    #[error("no ready endpoint")]
    NoEndpoint,
    /// A network policy of the pod does not allow it.
    #[error("a network policy does not allow it")]
    Policy,
}

/// The Service table, indexed.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    pub generation: u64,
    pub names: Names,
    pub policies: Policies,
    /// Another number whenever the policies are others.
    pub policies_epoch: u64,
    services: HashMap<(Transport, SocketAddrV4), Service>,
    endpoints: HashSet<Ipv4Addr>,
    /// Whether names of other domains may be asked for.
    onward: bool,
    /// Where the cluster's DNS answers.
    dns: Option<SocketAddrV4>,
}

/// Where a Service's address leads.
#[derive(Debug, Default)]
pub(crate) struct Service {
    pub endpoints: Vec<SocketAddrV4>,
    /// Seconds that a client keeps its endpoint.
    pub affinity: Option<u32>,
}

impl Routes {
    /// The index of a table.
    pub fn new(table: &ServiceTable) -> Routes {
        let mut routes = Routes {
            generation: table.generation,
            names: Names::new(table),
            policies: Policies::new(&table.policies),
            onward: table.dns.as_ref().is_some_and(|dns| !dns.upstreams.is_empty()),
            dns: table.dns.as_ref().and_then(|dns| match dns.listen {
                SocketAddr::V4(at) => Some(at),
                SocketAddr::V6(_) => None,
            }),
            ..Routes::default()
        };
        for service in &table.services {
            let address = SocketAddrV4::new(service.address, service.port);
            routes.endpoints.extend(service.endpoints.iter().map(SocketAddrV4::ip));
            let entry = routes.services.entry((service.transport, address)).or_default();
            entry.endpoints.extend(&service.endpoints);
            entry.affinity = service.affinity_seconds;
        }
        routes
    }

    /// Where a connection to `to` goes; `pick` chooses an endpoint's index.
    pub fn connect(
        &self,
        ranges: &Ranges,
        transport: Transport,
        to: SocketAddrV4,
        pick: impl FnOnce(&Service) -> usize,
    ) -> Result<SocketAddrV4, Refusal> {
        if let Some(service) = self.services.get(&(transport, to)) {
            return service.endpoints.get(pick(service)).copied().ok_or(Refusal::NoEndpoint);
        }
        // A guest with a resolver of its own.
        if let Some(dns) = self.dns.filter(|dns| dns.ip() == to.ip() && [53, dns.port()].contains(&to.port()))
        {
            return Ok(dns);
        }
        // Without a feed there is no table to ask: connect as asked.
        if ranges.services.contains(*to.ip()) && self.generation > 0 {
            return Err(Refusal::NoEndpoint);
        }
        let own = ranges.services.contains(*to.ip()) || ranges.pods.contains(*to.ip());
        if !own && is_local(*to.ip()) { Err(Refusal::Denied) } else { Ok(to) }
    }

    /// Whether the last hop of a connection may go to `to`: the guard behind the rewriting.
    pub fn may_reach(&self, ranges: &Ranges, to: SocketAddr) -> bool {
        match to.ip() {
            IpAddr::V4(ip) => {
                ranges.pods.contains(ip)
                    || ranges.services.contains(ip)
                    || !is_local(ip)
                    || self.endpoints.contains(&ip)
            }
            IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unspecified() && ip.to_ipv4().is_none(),
        }
    }

    /// What a guest's resolver finds; names of other domains only where they may be asked for.
    pub fn lookup(&self, ranges: &Ranges, name: &str, search: &Search) -> Found {
        match self.names.lookup(name, search, &ranges.pods) {
            Found::Elsewhere(_) if !self.onward => Found::Nothing,
            found => found,
        }
    }
}

/// Addresses that mean this host itself: 127/8, and 0/8, which Linux takes for it too.
fn is_local(ip: Ipv4Addr) -> bool {
    matches!(ip.octets()[0], 0 | 127)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Dns, ServiceEntry};

    fn at(text: &str) -> SocketAddrV4 {
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    fn routes() -> Routes {
        let entry = |address: [u8; 4], endpoints: &[&str]| ServiceEntry {
            name: "default/web".into(),
            port_name: String::new(),
            transport: Transport::Tcp,
            address: address.into(),
            port: 80,
            endpoints: endpoints.iter().map(|e| at(e)).collect(),
            affinity_seconds: None,
        };
        Routes::new(&ServiceTable {
            generation: 1,
            services: vec![
                entry([127, 96, 0, 9], &["127.64.0.2:8080", "127.64.0.3:8080"]),
                entry([127, 96, 0, 1], &["127.0.0.1:6443"]),
                entry([127, 96, 0, 7], &[]),
            ],
            dns: Some(Dns { listen: ([127, 96, 0, 10], 5353).into(), upstreams: vec![] }),
            ..ServiceTable::default()
        })
    }

    #[test]
    fn where_connections_lead() {
        let (routes, ranges) = (routes(), Ranges::default());
        let cases = [
            ("127.96.0.9:80", Ok("127.64.0.3:8080")),
            ("127.96.0.1:80", Ok("127.0.0.1:6443")),
            ("127.96.0.7:80", Err(Refusal::NoEndpoint)),
            ("127.96.0.9:81", Err(Refusal::NoEndpoint)),
            ("127.96.0.10:53", Ok("127.96.0.10:5353")),
            ("127.96.0.10:54", Err(Refusal::NoEndpoint)),
            ("127.64.9.9:1234", Ok("127.64.9.9:1234")),
            ("127.0.0.1:6443", Err(Refusal::Denied)),
            ("127.0.1.1:10250", Err(Refusal::Denied)),
            ("127.192.0.2:80", Err(Refusal::Denied)),
            ("0.0.0.0:80", Err(Refusal::Denied)),
            ("0.1.2.3:80", Err(Refusal::Denied)),
            ("192.0.2.1:80", Ok("192.0.2.1:80")),
        ];
        for (to, expected) in cases {
            let got =
                routes.connect(&ranges, Transport::Tcp, at(to), |s| s.endpoints.len().saturating_sub(1));
            assert_eq!(got, expected.map(at), "{to}");
        }
        let bare = Routes::default();
        let to = at("127.96.0.9:80");
        assert_eq!(bare.connect(&ranges, Transport::Tcp, to, |_| 0), Ok(to), "no feed: as asked");
    }

    #[test]
    fn the_guard_knows_loopback_in_every_form() {
        let (routes, ranges) = (routes(), Ranges::default());
        for (to, expected) in [
            ("127.0.0.1:1", true), // an endpoint of the table
            ("127.0.0.2:1", false),
            ("127.128.0.2:1", false),
            ("0.0.0.0:1", false),
            ("[::1]:1", false),
            ("[::]:1", false),
            ("[::ffff:127.0.0.9]:1", false),
            ("127.64.0.2:1", true),
            ("[2001:db8::1]:1", true),
        ] {
            let to: SocketAddr = to.parse().unwrap_or_else(|_| panic!("{to}"));
            assert_eq!(routes.may_reach(&ranges, to), expected, "{to}");
        }
    }
}
