//! What a pod asks of a node, computed once.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_api::quantity::Quantity;
use coracle_controllers::view::{Container, Meta, Pod};

/// Amounts of resources: CPU in thousandths of a core, all others in units (memory in bytes).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// Reads quantities as written; what cannot be read counts as nothing, since the API server has validated it.
    pub fn read(quantities: &BTreeMap<String, String>) -> Self {
        let amount = |name: &str, text: &str| {
            let quantity = Quantity::parse(text).ok()?;
            Some(if name == "cpu" { quantity.milli_value() } else { quantity.value() })
        };
        Self(quantities.iter().filter_map(|(k, v)| Some((k.clone(), amount(k, v)?))).collect())
    }

    /// How much of a resource.
    pub fn of(&self, resource: &str) -> i64 {
        self.0.get(resource).copied().unwrap_or(0)
    }

    /// Adds all of `other`.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes all of `other` away.
    pub fn subtract(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let rest = self.0.entry(name.clone()).or_default();
            *rest = rest.saturating_sub(*amount);
        }
    }

    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let most = self.0.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

/// A port that only one pod of a node can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// `0.0.0.0` is every address.
    pub ip: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// 1 to 65535.
    pub port: i32,
}

impl HostPort {
    /// Whether both cannot be on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        let all = |ip: &str| ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (all(&self.ip) || all(&other.ip) || self.ip == other.ip)
    }
}

/// A pod with its demands.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The pod as it was when it was last seen.
    pub pod: Arc<Pod>,
    /// What its containers request together.
    pub requests: Amounts,
    /// Host ports that it takes.
    pub ports: Vec<HostPort>,
    /// Uid of its controller, to spread its siblings; empty when it has none.
    pub owner: String,
}

impl Demand {
    /// Reads a pod.
    pub fn new(pod: Arc<Pod>) -> Self {
        let owner = pod.controller().map(|o| o.uid.clone()).unwrap_or_default();
        Self { requests: requests(&pod), ports: ports(&pod), owner, pod }
    }
}

// The larger of what runs together and what any init container needs while it runs; sidecars run along with both.
fn requests(pod: &Pod) -> Amounts {
    let of = |c: &Container| c.resources.requests.as_ref().map(Amounts::read).unwrap_or_default();
    let (mut sidecars, mut init) = (Amounts::default(), Amounts::default());
    for container in &pod.spec.init_containers {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&of(container));
            init.raise_to(&sidecars);
        } else {
            let mut with = sidecars.clone();
            with.add(&of(container));
            init.raise_to(&with);
        }
    }
    let mut total = sidecars;
    for container in &pod.spec.containers {
        total.add(&of(container));
    }
    total.raise_to(&init);
    if let Some(overhead) = &pod.spec.overhead {
        total.add(&Amounts::read(overhead));
    }
    total.0.retain(|_, amount| *amount > 0);
    total
}

fn ports(pod: &Pod) -> Vec<HostPort> {
    let ports = pod.spec.containers.iter().flat_map(|c| &c.ports);
    let taken = ports.filter_map(|p| {
        let port = p.host_port.filter(|n| *n > 0)?;
        let ip = p.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
        Some(HostPort { ip, protocol: p.protocol.clone().unwrap_or_else(|| "TCP".into()), port })
    });
    taken.collect()
}
