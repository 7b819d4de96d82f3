//! Services, names and policies, as the node streams them.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use crate::routes::Cidr;

/// Services, names and policies, as one whole: it replaces the table before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTable {
    pub generation: u64,
    pub services: Vec<ServiceEntry>,
    pub names: Vec<Name>,
    pub policies: Vec<Policy>,
    /// Such as `cluster.local`: names below it that are not in the table do not exist.
    pub domain: String,
    pub dns: Option<Dns>,
    /// No listeners: the node leads connections to Services by other means.
    pub resolve_only: bool,
}

/// What carries a Service's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
}

/// One port of a Service (or a node port) and the endpoints behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// `namespace/service`.
    pub name: String,
    pub port_name: String,
    pub transport: Transport,
    /// The address to listen on: the Service's, or a node's.
    pub address: Ipv4Addr,
    pub port: u16,
    /// Ready ones only.
    pub endpoints: Vec<SocketAddrV4>,
    /// A client keeps its endpoint until it was silent for so many seconds.
    pub affinity_seconds: Option<u32>,
}

/// A name of the cluster and its records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name {
    /// Lower-case, fully qualified, without a trailing dot.
    pub name: String,
    pub addresses: Vec<Ipv4Addr>,
    /// Another name for the same, of any domain.
    pub cname: Option<String>,
    pub srv: Vec<Srv>,
    /// Its addresses lead back to it.
    pub reverse: bool,
}

/// Where a named port of a Service is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Srv {
    pub port: u16,
    /// A name as in [`Name::name`].
    pub target: String,
}

/// Where DNS questions are answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub listen: SocketAddr,
    /// Who is asked for names of other domains; none: such questions are refused.
    pub upstreams: Vec<SocketAddr>,
}

/// What some pods may receive and send. A pod may what any of its policies allows; a direction that none of them speaks
/// of is free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `namespace/name`.
    pub name: String,
    /// Whom it is about.
    pub pods: Vec<Ipv4Addr>,
    /// `None`: it does not speak of what they receive.
    pub ingress: Option<Vec<Rule>>,
    /// `None`: it does not speak of what they send.
    pub egress: Option<Vec<Rule>>,
}

/// Peers and ports that are allowed together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `None`: everyone.
    pub peers: Option<Vec<Block>>,
    /// `None`: every port.
    pub ports: Option<Vec<Ports>>,
}

/// A range of peers, and ranges in it that are none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub cidr: Cidr,
    pub except: Vec<Cidr>,
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub transport: Transport,
    pub first: u16,
    pub last: u16,
}

/// A Service listener that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerError {
    /// `namespace/service`.
    pub service: String,
    pub transport: Transport,
    pub address: SocketAddrV4,
    pub message: String,
    /// Not permitted, rather than taken: a port below 1024 without the privilege.
    pub permission_denied: bool,
}
