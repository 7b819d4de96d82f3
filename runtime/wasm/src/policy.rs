//! What network policies let a pod of this host receive and send. Pure.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::protocol::{Block, Policy, Ports, Rule, Transport};

/// The policies of the table, indexed by pod.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Policies {
    rules: Vec<Vec<Rule>>,
    /// For each pod that a policy selects for what it receives: indices of `rules`.
    ingress: HashMap<Ipv4Addr, Vec<usize>>,
    egress: HashMap<Ipv4Addr, Vec<usize>>,
}

impl Policies {
    /// The index of a table's policies.
    pub fn new(policies: &[Policy]) -> Policies {
        let mut all = Policies::default();
        for policy in policies {
            let directions = [(&policy.ingress, &mut all.ingress), (&policy.egress, &mut all.egress)];
            for (rules, index) in directions {
                let Some(rules) = rules else { continue };
                for pod in &policy.pods {
                    index.entry(*pod).or_default().push(all.rules.len());
                }
                all.rules.push(rules.clone());
            }
        }
        all
    }

    /// Whether no pod's receiving is restricted.
    pub fn are_silent(&self) -> bool {
        self.ingress.is_empty()
    }

    /// Whether the pod may receive at `to` from this peer.
    pub fn may_receive(&self, transport: Transport, from: Ipv4Addr, to: SocketAddrV4) -> bool {
        // A pod reaches itself, whatever the policies say.
        from == *to.ip() || self.allows(&self.ingress, *to.ip(), transport, from, to.port())
    }

    /// Whether the pod may receive connections from this peer at one of these ports; of none that are known: at any.
    pub fn may_accept(&self, from: Ipv4Addr, pod: Ipv4Addr, ports: &[u16]) -> bool {
        if ports.is_empty() {
            let Some(policies) = self.ingress.get(&pod) else { return true };
            let mut rules = policies.iter().filter_map(|at| self.rules.get(*at)).flatten();
            return from == pod || rules.any(|rule| among(rule, from));
        }
        ports.iter().any(|port| self.may_receive(Transport::Tcp, from, SocketAddrV4::new(pod, *port)))
    }

    /// Whether the pod may send to this address.
    pub fn may_send(&self, transport: Transport, from: Ipv4Addr, to: SocketAddrV4) -> bool {
        from == *to.ip() || self.allows(&self.egress, from, transport, *to.ip(), to.port())
    }

    fn allows(
        &self,
        index: &HashMap<Ipv4Addr, Vec<usize>>,
        pod: Ipv4Addr,
        transport: Transport,
        peer: Ipv4Addr,
        port: u16,
    ) -> bool {
        let Some(policies) = index.get(&pod) else { return true };
        let mut rules = policies.iter().filter_map(|at| self.rules.get(*at)).flatten();
        rules.any(|rule| matches(rule, transport, peer, port))
    }
}

/// Whether a rule speaks of this peer.
fn among(rule: &Rule, peer: Ipv4Addr) -> bool {
    rule.peers.as_ref().is_none_or(|blocks| {
        let within = |block: &Block| {
            block.cidr.contains(peer) && !block.except.iter().any(|range| range.contains(peer))
        };
        blocks.iter().any(within)
    })
}

fn matches(rule: &Rule, transport: Transport, peer: Ipv4Addr, port: u16) -> bool {
    let within = |range: &Ports| range.transport == transport && (range.first..=range.last).contains(&port);
    among(rule, peer) && rule.ports.as_ref().is_none_or(|ports| ports.iter().any(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Block {
        Block { cidr: text.parse().unwrap_or_else(|e| panic!("{e}")), except: Vec::new() }
    }

    #[test]
    fn what_a_selected_pod_may() {
        let pod = Ipv4Addr::new(10, 0, 0, 2);
        let http = Ports { transport: Transport::Tcp, first: 80, last: 81 };
        let mut friends = block("10.0.1.0/24");
        friends.except.push("10.0.1.9/32".parse().unwrap());
        let rule = Rule { peers: Some(vec![friends]), ports: Some(vec![http]) };
        let policies = Policies::new(&[
            Policy { name: "a/deny".into(), pods: vec![pod], ingress: Some(Vec::new()), egress: None },
            Policy { name: "a/friends".into(), pods: vec![pod], ingress: Some(vec![rule]), egress: None },
        ]);
        let receives = |from: [u8; 4], port, transport| {
            policies.may_receive(transport, from.into(), SocketAddrV4::new(pod, port))
        };
        assert!(receives([10, 0, 1, 1], 80, Transport::Tcp));
        assert!(receives([10, 0, 1, 1], 81, Transport::Tcp));
        assert!(!receives([10, 0, 1, 1], 82, Transport::Tcp));
        assert!(!receives([10, 0, 1, 1], 80, Transport::Udp));
        assert!(!receives([10, 0, 1, 9], 80, Transport::Tcp), "an exception");
        assert!(!receives([10, 0, 2, 1], 80, Transport::Tcp));
        assert!(receives([10, 0, 0, 2], 9999, Transport::Tcp), "itself");
        let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 80);
        assert!(policies.may_receive(Transport::Tcp, pod, other), "selected by none");
        assert!(policies.may_send(Transport::Tcp, pod, other), "no policy speaks of what it sends");
    }
}
