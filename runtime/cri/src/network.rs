//! The Service table feed: the node streams tables in, the host gets the latest.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use coracle_cri_api::network::{self, service_table_server};
use coracle_wasm::protocol::{self, ServiceEntry, Transport};
use coracle_wasm::routes::Cidr;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::rpc::Rpc;
use crate::service::refused;

/// The most listeners in one table.
const MAX_LISTENERS: usize = 100_000;

fn problem(
    service: &str,
    listener: &network::Listener,
    reason: &str,
    message: String,
) -> network::ListenerError {
    network::ListenerError {
        service: service.to_owned(),
        address: listener.address.clone(),
        port: listener.port,
        reason: reason.to_owned(),
        message,
        protocol: listener.protocol,
    }
}

fn transport(protocol: network::Protocol) -> Transport {
    match protocol {
        network::Protocol::Tcp => Transport::Tcp,
        network::Protocol::Udp => Transport::Udp,
    }
}

/// The table in the words of the host, and what of it cannot be put to use.
pub fn translate(table: &network::Table) -> (protocol::ServiceTable, Vec<network::ListenerError>) {
    let mut errors = Vec::new();
    let mut services = Vec::new();
    for service in &table.services {
        for listener in &service.listeners {
            if services.len() >= MAX_LISTENERS {
                errors.push(problem(
                    &service.name,
                    listener,
                    "Unsupported",
                    format!("more than {MAX_LISTENERS} listeners"),
                ));
                continue;
            }
            match entry(service, listener) {
                Ok(entry) => services.push(entry),
                Err(error) => errors.push(error),
            }
        }
    }
    let translated = protocol::ServiceTable {
        generation: table.generation,
        services,
        names: table.names.iter().map(name).collect(),
        policies: table.policies.iter().map(policy).collect(),
        domain: lower(&table.domain),
        dns: table.dns.as_ref().and_then(dns),
        resolve_only: table.resolve_only,
    };
    (translated, errors)
}

fn lower(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn name(name: &network::Name) -> protocol::Name {
    let srv = |srv: &network::Srv| {
        let port = u16::try_from(srv.port).ok()?;
        Some(protocol::Srv { port, target: lower(&srv.target) })
    };
    protocol::Name {
        name: lower(&name.name),
        addresses: name.addresses.iter().filter_map(|a| a.parse().ok()).collect(),
        cname: Some(lower(&name.cname)).filter(|c| !c.is_empty()),
        srv: name.srv.iter().filter_map(srv).collect(),
        reverse: name.reverse,
    }
}

fn dns(dns: &network::Dns) -> Option<protocol::Dns> {
    let listen: SocketAddr = dns.listen.parse().ok()?;
    Some(protocol::Dns { listen, upstreams: dns.upstreams.iter().filter_map(|a| a.parse().ok()).collect() })
}

/// What cannot be read of a policy allows nothing: it is about who may, not about who may not.
fn policy(policy: &network::Policy) -> protocol::Policy {
    let rules = |rules: &[network::Rule]| rules.iter().map(rule).collect();
    protocol::Policy {
        name: policy.name.clone(),
        pods: policy.pods.iter().filter_map(|a| a.parse().ok()).collect(),
        ingress: policy.ingress.then(|| rules(&policy.ingress_rules)),
        egress: policy.egress.then(|| rules(&policy.egress_rules)),
    }
}

fn rule(rule: &network::Rule) -> protocol::Rule {
    let block = |block: &network::IpBlock| {
        let except = block.except.iter().map(|c| c.parse()).collect::<Result<Vec<Cidr>, _>>().ok()?;
        Some(protocol::Block { cidr: block.cidr.parse().ok()?, except })
    };
    let ports = |ports: &network::PolicyPort| {
        let transport = transport(ports.protocol());
        let (first, last) = match (ports.first, ports.last) {
            (0, 0) => (0, u16::MAX),
            (first, last) => (u16::try_from(first).ok()?, u16::try_from(last).ok()?),
        };
        Some(protocol::Ports { transport, first, last })
    };
    protocol::Rule {
        peers: (!rule.any_peer).then(|| rule.peers.iter().filter_map(block).collect()),
        ports: (!rule.any_port).then(|| rule.ports.iter().filter_map(ports).collect()),
    }
}

fn entry(
    service: &network::Service,
    listener: &network::Listener,
) -> Result<ServiceEntry, network::ListenerError> {
    let name = service.name.as_str();
    let invalid = |message: String| problem(name, listener, "InvalidAddress", message);
    let address: Ipv4Addr = listener
        .address
        .parse()
        .map_err(|_| invalid(format!("{:?} is not an IPv4 address", listener.address)))?;
    let port = u16::try_from(listener.port).ok().filter(|p| *p != 0);
    let port = port.ok_or_else(|| invalid(format!("{} is not a port", listener.port)))?;
    let endpoint = |e: &network::Endpoint| {
        let port = u16::try_from(e.port).ok().filter(|p| *p != 0);
        match (e.address.parse::<Ipv4Addr>(), port) {
            (Ok(address), Some(port)) => Ok(SocketAddrV4::new(address, port)),
            _ => Err(invalid(format!("endpoint {}:{} is not an IPv4 address and port", e.address, e.port))),
        }
    };
    Ok(ServiceEntry {
        name: name.to_owned(),
        port_name: listener.port_name.clone(),
        transport: transport(listener.protocol()),
        affinity_seconds: service.client_ip_affinity.then_some(service.affinity_seconds),
        address,
        port,
        endpoints: listener.endpoints.iter().map(endpoint).collect::<Result<_, _>>()?,
    })
}

fn listener_error(error: protocol::ListenerError) -> network::ListenerError {
    network::ListenerError {
        service: error.service,
        address: error.address.ip().to_string(),
        port: error.address.port().into(),
        reason: if error.permission_denied { "PermissionDenied" } else { "AddressInUse" }.to_owned(),
        message: error.message,
        protocol: match error.transport {
            Transport::Tcp => network::Protocol::Tcp,
            Transport::Udp => network::Protocol::Udp,
        }
        .into(),
    }
}

impl Rpc {
    async fn apply(&self, table: &network::Table) -> Result<network::Applied, Status> {
        let (translated, mut errors) = translate(table);
        let translated = Arc::new(translated);
        // Kept first: a host that comes meanwhile gets it too.
        self.0.table.send_replace(Some(translated.clone()));
        let host = self.0.host.client().await?;
        let refusals = host.set_services((*translated).clone()).await.map_err(refused)?;
        errors.extend(refusals.into_iter().map(listener_error));
        Ok(network::Applied { generation: table.generation, errors })
    }
}

#[tonic::async_trait]
impl service_table_server::ServiceTable for Rpc {
    type SyncStream = ReceiverStream<Result<network::Applied, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<network::Table>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let mut tables = request.into_inner();
        let (latest, mut wanted) = watch::channel(None);
        tokio::spawn(async move {
            // Only the latest is kept: a slow host skips what is overtaken.
            while let Ok(Some(table)) = tables.message().await {
                if latest.send(Some(table)).is_err() {
                    break;
                }
            }
        });
        let (answers, stream) = mpsc::channel(4);
        let rpc = self.clone();
        tokio::spawn(async move {
            while wanted.changed().await.is_ok() {
                let Some(table) = wanted.borrow_and_update().clone() else { continue };
                let answer = rpc.apply(&table).await;
                let failed = answer.is_err();
                // A failure ends the stream: the node connects again and sends the table of that time.
                if answers.send(answer).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: &str, port: u32) -> network::Listener {
        network::Listener {
            address: address.into(),
            port,
            endpoints: vec![network::Endpoint { address: "127.72.0.2".into(), port: 8080 }],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_wrong_is_reported_and_the_rest_is_used() {
        let mut udp = listener("127.96.0.5", 53);
        udp.protocol = network::Protocol::Udp.into();
        let mut bad_endpoint = listener("127.96.0.6", 80);
        bad_endpoint.endpoints[0].port = 0;
        let table = network::Table {
            generation: 7,
            services: vec![network::Service {
                name: "default/web".into(),
                listeners: vec![
                    listener("127.96.0.4", 80),
                    udp,
                    listener("::1", 80),
                    listener("127.96.0.4", 0),
                    bad_endpoint,
                ],
                ..Default::default()
            }],
            names: vec![network::Name {
                name: "A.B.".into(),
                addresses: vec!["127.72.0.2".into(), "x".into()],
                ..Default::default()
            }],
            ..Default::default()
        };
        let (translated, errors) = translate(&table);
        assert_eq!(translated.generation, 7);
        assert_eq!(translated.services.len(), 2);
        assert_eq!(translated.services[1].transport, Transport::Udp);
        assert_eq!(translated.services[0].endpoints, ["127.72.0.2:8080".parse().unwrap()]);
        assert_eq!(translated.names[0].name, "a.b");
        assert_eq!(translated.names[0].addresses, [Ipv4Addr::new(127, 72, 0, 2)]);
        let reasons: Vec<_> = errors.iter().map(|e| e.reason.as_str()).collect();
        assert_eq!(reasons, ["InvalidAddress", "InvalidAddress", "InvalidAddress"]);
    }
}
