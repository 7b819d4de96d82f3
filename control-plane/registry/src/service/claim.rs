//! Claims: who holds what, as keys of their own in the store, so that of several servers one gets a thing.
//!
//! A claim whose holder gave something up without telling (its create failed in an odd way, its server died in between) is
//! found out when somebody else wants the same thing, or when the range is full.

use std::net::IpAddr;

use bytes::Bytes;
use coracle_api::status::Status;
use coracle_apiserver::Objects;
use coracle_store::{Compare, KeyValue, Op, OpResult, Txn};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::networking::{self, ip_address};
use crate::value::{items, number, text};

/// How long a write may be under way, in seconds: until then its holder is believed though the store does not show it yet.
const UNDER_WAY: i64 = 120;
/// How often a claim is tried again when another server came between.
const ATTEMPTS: usize = 8;

/// Below it lie the claims of addresses.
pub const ADDRESSES: &str = "/coracle/allocations/addresses/";
/// Below it lie the claims of node ports.
pub const PORTS: &str = "/coracle/allocations/node-ports/";

/// Why nothing was allocated.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// Outside of the range.
    OutOfRange,
    /// Somebody has it.
    Taken,
    /// Nothing is free.
    Full,
    /// Asking the store failed.
    Failed(Status),
}

/// A Service: namespace and name.
pub type Holder = (String, String);

/// A claim as it is stored.
#[derive(Serialize, Deserialize)]
pub struct Claim {
    namespace: String,
    name: String,
    /// When it was made, in Unix seconds.
    at: i64,
}

impl Claim {
    /// The claim in a key, if it is one.
    pub fn of(kv: &KeyValue) -> Option<Self> {
        serde_json::from_slice(&kv.value.json).ok()
    }

    /// Whose it is.
    pub fn holder(&self) -> Holder {
        (self.namespace.clone(), self.name.clone())
    }

    /// Whether it is this Service's.
    pub fn is_of(&self, holder: &Holder) -> bool {
        (self.namespace.as_str(), self.name.as_str()) == (holder.0.as_str(), holder.1.as_str())
    }
}

/// What can be claimed.
#[derive(Clone, Copy)]
pub enum What {
    /// A Service address.
    Address(IpAddr),
    /// A node port.
    Port(u16),
}

impl What {
    /// The key of its claim.
    pub fn key(self) -> Bytes {
        match self {
            Self::Address(ip) => format!("{ADDRESSES}{ip}").into(),
            Self::Port(port) => format!("{PORTS}{port}").into(),
        }
    }

    /// Whether this Service holds it.
    pub fn held_by(self, service: &Value) -> bool {
        match self {
            Self::Address(ip) => addresses(service).contains(&ip),
            Self::Port(port) => node_ports(service).contains(&port),
        }
    }

    /// All that a Service holds.
    pub fn of(service: &Value) -> Vec<Self> {
        let ports = node_ports(service).into_iter().map(Self::Port);
        addresses(service).into_iter().map(Self::Address).chain(ports).collect()
    }
}

/// The addresses that a Service holds.
pub fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = items(service, "/spec/clusterIPs").iter().filter_map(Value::as_str);
    all.chain([text(service, "/spec/clusterIP")]).filter_map(|ip| ip.parse().ok()).collect()
}

/// The node ports that a Service holds.
pub fn node_ports(service: &Value) -> Vec<u16> {
    let all = items(service, "/spec/ports").iter().map(|p| number(p, "/nodePort"));
    all.chain([number(service, "/spec/healthCheckNodePort")])
        .filter_map(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
        .collect()
}

/// Namespace and name of a Service.
pub fn holder(service: &Value) -> Holder {
    (text(service, "/metadata/namespace").to_string(), text(service, "/metadata/name").to_string())
}

/// The store did not take part.
pub fn failed(error: coracle_store::Error) -> Refusal {
    Refusal::Failed(Status::service_unavailable(format!("claiming an address or a port: {error}")))
}

/// Whether a claim means nothing any more: it is old, and its holder does not have the thing.
pub async fn stale(what: What, claim: Option<&Claim>, objects: &Objects) -> Result<bool, Refusal> {
    let Some(claim) = claim else { return Ok(true) };
    if Timestamp::now().as_second().saturating_sub(claim.at) < UNDER_WAY {
        return Ok(false);
    }
    let found =
        objects.get("", "services", Some(&claim.namespace), &claim.name).await.map_err(Refusal::Failed)?;
    Ok(!found.is_some_and(|service| what.held_by(&service)))
}

/// Whether an IPAddress that is not this Service's holds an address.
async fn held_by_hand(what: What, holder: &Holder, objects: &Objects) -> Result<bool, Refusal> {
    let What::Address(ip) = what else { return Ok(false) };
    let found = objects.get(networking::GROUP, ip_address::PLURAL, None, &ip.to_string()).await;
    let Some(found) = found.map_err(Refusal::Failed)? else { return Ok(false) };
    let parent = |field: &str| text(&found, &format!("/spec/parentRef/{field}"));
    Ok(!ip_address::is_of_services(&found)
        && (parent("resource"), parent("namespace"), parent("name"))
            != ("services", holder.0.as_str(), holder.1.as_str()))
}

/// The IPAddress that is written with the claim of an address.
fn shown(what: What, holder: &Holder, objects: &Objects) -> Result<Option<Op>, Refusal> {
    let What::Address(ip) = what else { return Ok(None) };
    let object = ip_address::of_service(ip, &holder.0, &holder.1, Timestamp::now());
    let stored = objects.stored(networking::GROUP, ip_address::PLURAL, &object);
    let (key, value) = stored.map_err(Refusal::Failed)?;
    Ok(Some(Op::Put { key, value, ttl_ms: None }))
}

/// Deletes a claim that was read, and the IPAddress of an address.
pub fn unclaim(what: What, revision: u64) -> Txn {
    let mut txn = Txn {
        compares: vec![Compare::ModRevision(what.key(), revision)],
        success: vec![Op::Delete { key: what.key() }],
        failure: Vec::new(),
    };
    if let What::Address(ip) = what {
        let key = format!("/registry/{}/{}/{ip}", networking::GROUP, ip_address::PLURAL);
        txn.success.push(Op::Delete { key: key.into() });
    }
    txn
}

/// Whether somebody other than `holder` has it.
pub async fn taken(what: What, holder: &Holder, objects: &Objects) -> Result<bool, Refusal> {
    let Some(kv) = objects.store().get(&what.key()) else { return held_by_hand(what, holder, objects).await };
    let claim = Claim::of(&kv);
    if claim.as_ref().is_some_and(|claim| claim.is_of(holder)) {
        return Ok(false);
    }
    Ok(!stale(what, claim.as_ref(), objects).await?)
}

/// Makes it the holder's. `false`: somebody else has it.
pub async fn claim(what: What, holder: &Holder, objects: &Objects) -> Result<bool, Refusal> {
    let claim =
        Claim { namespace: holder.0.clone(), name: holder.1.clone(), at: Timestamp::now().as_second() };
    let value = serde_json::to_vec(&claim).map_err(|error| Refusal::Failed(Status::internal(error)))?;
    let value = coracle_store::Value::raw(value);
    if held_by_hand(what, holder, objects).await? {
        return Ok(false);
    }
    let shown = shown(what, holder, objects)?;
    let mut txn = Txn::create(what.key(), value.clone(), None);
    for _ in 0..ATTEMPTS {
        txn.success.extend(shown.clone());
        let done = objects.store().txn(txn).await.map_err(failed)?;
        if done.succeeded {
            return Ok(true);
        }
        let Some(OpResult::Get(Some(kv))) = done.results.first() else {
            txn = Txn::create(what.key(), value.clone(), None);
            continue;
        };
        let found = Claim::of(kv);
        if found.as_ref().is_some_and(|found| found.is_of(holder)) {
            return Ok(true);
        }
        if !stale(what, found.as_ref(), objects).await? {
            return Ok(false);
        }
        txn = Txn::update(what.key(), kv.mod_revision, value.clone(), None);
    }
    Ok(false)
}

/// Takes it, or only looks whether that is possible.
pub async fn take(what: What, holder: &Holder, objects: &Objects, keep: bool) -> Result<bool, Refusal> {
    if keep { claim(what, holder, objects).await } else { Ok(!taken(what, holder, objects).await?) }
}
