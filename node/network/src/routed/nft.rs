//! Pure: the table as a script for nftables, which replaces the one before as one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use coracle_cri_api::network as feed;

/// The mark of connections whose source becomes this node.
const MARK: &str = "0x4000";

/// The name of the table.
pub const TABLE: &str = "coracle";

/// The whole script. `gateway` is the address by which this node speaks to its pods with namespaces.
pub fn script(
    table: &feed::Table,
    service_cidr: &str,
    cluster_dns: Option<Ipv4Addr>,
    gateway: Option<Ipv4Addr>,
) -> String {
    let mut services = Services::default();
    for service in &table.services {
        for listener in &service.listeners {
            services.add(service, listener);
        }
    }
    let policies = policies(&table.policies, gateway);
    let elements = match services.elements.is_empty() {
        true => String::new(),
        false => format!("    elements = {{ {} }}\n", services.elements.join(", ")),
    };
    let answered = cluster_dns.map(|ip| format!(" ip daddr != {ip}")).unwrap_or_default();
    // Added and deleted first, so that it is replaced whether it was there or not.
    format!(
        "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{
  map services {{
    type ipv4_addr . inet_proto . inet_service : verdict
{elements}  }}
{chains}{policy_chains}  chain services {{
    ip daddr . meta l4proto . th dport vmap @services
  }}
{translation}  chain unserved {{
    ip daddr {service_cidr}{answered} reject
  }}
{verdicts}{filters}}}
{bridge}",
        chains = services.chains,
        policy_chains = policies.chains,
        translation = translation(),
        verdicts = policies.verdicts,
        filters = filters(),
        bridge = between_neighbours(&policies),
    )
}

/// Where connections are led to endpoints.
fn translation() -> String {
    format!(
        "  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    jump services
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    meta mark & {MARK} == {MARK} masquerade
  }}
"
    )
}

/// Where Services that nobody serves are refused and policies hold: what is led through, sent and received.
fn filters() -> String {
    let chain = |hook: &str, unserved: &str| {
        format!(
            "  chain filter-{hook} {{
    type filter hook {hook} priority filter; policy accept;
{unserved}    jump policies
  }}
"
        )
    };
    let unserved = "    jump unserved\n";
    chain("forward", unserved) + &chain("output", unserved) + &chain("input", "")
}

/// Pods with namespaces on one bridge reach each other without this node's routing: their new connections are judged there.
/// Not every kernel follows connections across a bridge, so that only TCP, which says what is new, is judged.
fn between_neighbours(policies: &Policies) -> String {
    let judged = policies.verdicts.replace("    ct state established,related accept\n", "");
    format!(
        "table bridge {TABLE}\ndelete table bridge {TABLE}\ntable bridge {TABLE} {{
{chains}{judged}  chain forward {{
    type filter hook forward priority filter; policy accept;
    ether type ip tcp flags & (syn | ack) == syn jump policies
  }}
}}
",
        chains = policies.chains,
    )
}

#[derive(Default)]
struct Services {
    elements: Vec<String>,
    chains: String,
    seen: BTreeSet<(Ipv4Addr, &'static str, u16)>,
    /// Chains of endpoints by what they lead to.
    endpoints: BTreeMap<(Ipv4Addr, u16, &'static str), usize>,
    count: usize,
}

impl Services {
    fn add(&mut self, service: &feed::Service, listener: &feed::Listener) {
        let (Ok(address), Some(port)) = (listener.address.parse::<Ipv4Addr>(), number(listener.port)) else {
            return;
        };
        let protocol = protocol(listener.protocol());
        let endpoint =
            |e: &feed::Endpoint| Some((e.address.parse::<Ipv4Addr>().ok()?, number(e.port)?, protocol));
        let endpoints: Vec<_> = listener.endpoints.iter().filter_map(endpoint).collect();
        // Without an endpoint it is refused like any other address of the range.
        if endpoints.is_empty() || !self.seen.insert((address, protocol, port)) {
            return;
        }
        let chains: Vec<usize> = endpoints.into_iter().map(|e| self.endpoint(e)).collect();
        let index = self.count;
        self.count += 1;
        self.elements.push(format!("{address} . {protocol} . {port} : goto service-{index}"));
        let mark = if listener.masquerade { format!("    {}\n", set_mark()) } else { String::new() };
        // A client with affinity is led by its address: that needs no memory, and survives a new table.
        let n = chains.len();
        let pick = match service.client_ip_affinity {
            true => format!("jhash ip saddr mod {n} seed 0x1"),
            false => format!("numgen random mod {n}"),
        };
        let targets: Vec<String> =
            chains.iter().enumerate().map(|(at, chain)| format!("{at} : goto endpoint-{chain}")).collect();
        let _ = writeln!(
            self.chains,
            "  chain service-{index} {{\n{mark}    {pick} vmap {{ {} }}\n  }}",
            targets.join(", ")
        );
    }

    fn endpoint(&mut self, endpoint: (Ipv4Addr, u16, &'static str)) -> usize {
        if let Some(index) = self.endpoints.get(&endpoint) {
            return *index;
        }
        let index = self.endpoints.len();
        self.endpoints.insert(endpoint, index);
        let (address, port, protocol) = endpoint;
        // A pod that is led to itself would else answer itself past this node.
        let _ = writeln!(
            self.chains,
            "  chain endpoint-{index} {{\n    ip saddr {address} {}\n    meta l4proto {protocol} dnat to {address}:{port}\n  }}",
            set_mark()
        );
        index
    }
}

fn set_mark() -> String {
    format!("meta mark set mark or {MARK}")
}

fn number(port: u32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p > 0)
}

fn protocol(protocol: feed::Protocol) -> &'static str {
    match protocol {
        feed::Protocol::Tcp => "tcp",
        feed::Protocol::Udp => "udp",
    }
}

struct Policies {
    chains: String,
    verdicts: String,
}

/// One chain a pod and direction, which returns for what a policy allows and drops the rest.
fn policies(policies: &[feed::Policy], gateway: Option<Ipv4Addr>) -> Policies {
    let mut rules: BTreeMap<(bool, Ipv4Addr), Vec<&feed::Rule>> = BTreeMap::new();
    for policy in policies {
        for pod in policy.pods.iter().filter_map(|ip| ip.parse().ok()) {
            if policy.ingress {
                rules.entry((true, pod)).or_default().extend(&policy.ingress_rules);
            }
            if policy.egress {
                rules.entry((false, pod)).or_default().extend(&policy.egress_rules);
            }
        }
    }
    let mut chains = String::new();
    let mut verdicts = "  chain policies {\n    ct state established,related accept\n".to_owned();
    for (ingress, direction, own, peer) in
        [(true, "ingress", "daddr", "saddr"), (false, "egress", "saddr", "daddr")]
    {
        let mut elements = Vec::new();
        for ((_, pod), rules) in rules.iter().filter(|((i, _), _)| *i == ingress) {
            let name = format!("{direction}-{}", pod.to_string().replace('.', "-"));
            let _ = writeln!(chains, "  chain {name} {{\n    ip {peer} {pod} return");
            if let (true, Some(gateway)) = (ingress, gateway) {
                let _ = writeln!(chains, "    ip saddr {gateway} return");
            }
            for rule in rules {
                chains.extend(lines(rule, peer).map(|line| format!("    {line}return\n")));
            }
            chains.push_str("    drop\n  }\n");
            elements.push(format!("{pod} : jump {name}"));
        }
        if !elements.is_empty() {
            let _ = writeln!(verdicts, "    ip {own} vmap {{ {} }}", elements.join(", "));
        }
    }
    verdicts.push_str("  }\n");
    Policies { chains, verdicts }
}

/// The conditions under which a rule allows, one line each combination of a peer and ports.
fn lines<'a>(rule: &'a feed::Rule, peer: &'a str) -> impl Iterator<Item = String> + 'a {
    let peers: Vec<String> = match rule.any_peer {
        true => vec![String::new()],
        false => rule.peers.iter().filter_map(|block| condition(block, peer)).collect(),
    };
    let ports: Vec<String> = match rule.any_port {
        true => vec![String::new()],
        false => rule.ports.iter().filter_map(port_condition).collect(),
    };
    peers.into_iter().flat_map(move |peer| ports.clone().into_iter().map(move |port| format!("{peer}{port}")))
}

fn condition(block: &feed::IpBlock, peer: &str) -> Option<String> {
    let mut text = format!("ip {peer} {} ", range(&block.cidr)?);
    for except in &block.except {
        // One that cannot be read allows nothing of the block.
        let _ = write!(text, "ip {peer} != {} ", range(except)?);
    }
    Some(text)
}

/// The range as nftables reads it; `None` for what is no IPv4 range.
fn range(cidr: &str) -> Option<String> {
    let (base, prefix) = cidr.split_once('/')?;
    let IpAddr::V4(base) = base.parse().ok()? else { return None };
    let prefix: u8 = prefix.parse().ok().filter(|p| *p <= 32)?;
    Some(format!("{base}/{prefix}"))
}

fn port_condition(port: &feed::PolicyPort) -> Option<String> {
    let protocol = protocol(port.protocol());
    if (port.first, port.last) == (0, 0) {
        return Some(format!("meta l4proto {protocol} "));
    }
    let (first, last) = (number(port.first)?, number(port.last)?);
    Some(format!("{protocol} dport {first}-{last} "))
}

#[cfg(test)]
mod tests;
