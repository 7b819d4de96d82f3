//! Pure: nodes in, routes and announced addresses out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use coracle_cri_api::network as feed;
use k8s_openapi::api::core::v1::Node;

/// The routes of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ranges of pods of other nodes, and the address of the node that has them.
    pub via: BTreeMap<String, Ipv4Addr>,
    /// The first address of this node's own range, by which the node speaks to its pods with namespaces.
    pub gateway: Option<Ipv4Addr>,
}

/// Routes to the pods of all other nodes that have a range and an address.
pub fn plan<'a>(nodes: impl Iterator<Item = &'a Node>, me: &str) -> Plan {
    let mut plan = Plan::default();
    for node in nodes {
        let Some(range) = range(node) else { continue };
        if node.metadata.name.as_deref() == Some(me) {
            plan.gateway = Some(Ipv4Addr::from(u32::from(range.0) + 1));
        } else if let Some(address) = address(node) {
            plan.via.insert(format!("{}/{}", range.0, range.1), address);
        }
    }
    plan
}

fn range(node: &Node) -> Option<(Ipv4Addr, u8)> {
    let (base, prefix) = node.spec.as_ref()?.pod_cidr.as_deref()?.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|p| (8..=30).contains(p))?;
    Some((base.parse().ok()?, prefix))
}

fn address(node: &Node) -> Option<Ipv4Addr> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    addresses.iter().find(|a| a.type_ == "InternalIP")?.address.parse().ok()
}

/// The addresses of load balancers that this node answers for on its link: each is one ready node's.
pub fn announced<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    me: &str,
    table: &feed::Table,
    service_cidr: &str,
) -> BTreeSet<Ipv4Addr> {
    let mut taken = BTreeSet::new();
    let mut ready: Vec<&str> = Vec::new();
    for node in nodes {
        taken.extend(address(node));
        ready.extend(node.metadata.name.as_deref().filter(|_| is_ready(node)));
    }
    ready.sort_unstable();
    let addresses = table.services.iter().flat_map(|s| &s.listeners).filter_map(|l| l.address.parse().ok());
    let outside = addresses.filter(|ip| !taken.contains(ip) && !within(service_cidr, *ip));
    let mine = |ip: &Ipv4Addr| {
        let index = u32::from(*ip) as usize % ready.len().max(1);
        ready.get(index) == Some(&me)
    };
    outside.filter(mine).collect()
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// Whether an address lies in a range; of a range that cannot be read, none does.
pub fn within(cidr: &str, ip: Ipv4Addr) -> bool {
    let parse = |cidr: &str| {
        let (base, prefix) = cidr.split_once('/')?;
        let (base, prefix): (Ipv4Addr, u32) = (base.parse().ok()?, prefix.parse().ok()?);
        let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix)?).unwrap_or(0);
        Some(u32::from(base) & mask == u32::from(ip) & mask)
    };
    parse(cidr).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, cidr: &str, ip: &str, ready: &str) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "spec": {"podCIDR": cidr},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}],
                "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .expect("a Node")
    }

    #[test]
    fn routes_lead_to_the_other_nodes() {
        let nodes = [
            node("a", "10.244.0.0/24", "192.168.0.1", "True"),
            node("b", "10.244.1.0/24", "192.168.0.2", "True"),
            node("c", "nonsense", "192.168.0.3", "True"),
        ];
        let plan = plan(nodes.iter(), "a");
        assert_eq!(plan.via, [("10.244.1.0/24".to_owned(), Ipv4Addr::new(192, 168, 0, 2))].into());
        assert_eq!(plan.gateway, Some(Ipv4Addr::new(10, 244, 0, 1)));
    }

    #[test]
    fn one_ready_node_answers_for_an_address() {
        let mut nodes = [node("a", "", "192.168.0.1", "True"), node("b", "", "192.168.0.2", "True")];
        let listener =
            |address: &str| feed::Listener { address: address.into(), port: 80, ..Default::default() };
        let service = feed::Service {
            listeners: ["10.96.0.9", "192.168.0.1", "192.168.9.1", "192.168.9.2"].map(listener).into(),
            ..Default::default()
        };
        let table = feed::Table { services: vec![service], ..Default::default() };
        let of = |nodes: &[Node], me: &str| announced(nodes.iter(), me, &table, "10.96.0.0/12");
        let (a, b) = (of(&nodes, "a"), of(&nodes, "b"));
        assert_eq!((a.len(), b.len()), (1, 1));
        assert!(a.is_disjoint(&b));
        nodes[1] = node("b", "", "192.168.0.2", "False");
        assert_eq!((of(&nodes, "a").len(), of(&nodes, "b").len()), (2, 0));
    }
}
