//! Service addresses: balanced over ready endpoints only, without losing a request while endpoints change.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use coracle_wasm::protocol::{Block, Name, Policy, Rule, SandboxSpec, ServiceEntry, ServiceTable, Transport};

use crate::harness::{Connection, Host, Result, get, service_address};

fn table(generation: u64, address: Ipv4Addr, pods: &[&SandboxSpec]) -> ServiceTable {
    ServiceTable {
        generation,
        services: vec![ServiceEntry {
            name: "default/web".into(),
            port_name: "http".into(),
            transport: Transport::Tcp,
            affinity_seconds: None,
            address,
            port: 8080,
            endpoints: pods.iter().map(|p| SocketAddrV4::new(p.pod_ip, 8080)).collect(),
        }],
        names: vec![Name {
            name: "web.default.svc.cluster.local".into(),
            addresses: vec![address],
            ..Name::default()
        }],
        ..ServiceTable::default()
    }
}

async fn web(host: &Host, name: &str) -> Result<SandboxSpec> {
    let pod = host.pod(name).await?;
    host.start_container(host.spec(&pod, "main", "web", &[])).await?;
    Ok(pod)
}

async fn answers(to: SocketAddrV4) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let (status, body) = get(to, "/").await?;
        assert_eq!(status, 200);
        seen.insert(body.trim_start_matches("hello from ").trim().to_owned());
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_ready_endpoints_are_asked() -> Result {
    let host = Host::start().await?;
    let (a, b, c) = (web(&host, "a").await?, web(&host, "b").await?, web(&host, "c").await?);
    let address = service_address();
    let to = SocketAddrV4::new(address, 8080);
    let names = |all: &[&str]| all.iter().map(|s| s.to_string()).collect::<BTreeSet<_>>();
    assert!(host.client.set_services(table(1, address, &[&a, &b, &c])).await?.is_empty());
    assert_eq!(answers(to).await?, names(&["a", "b", "c"]));
    host.client.set_services(table(2, address, &[&a, &c])).await?;
    assert_eq!(answers(to).await?, names(&["a", "c"]));
    // An endpoint outside this process, and one that is not there.
    let outside = tokio::net::TcpListener::bind((Ipv4Addr::new(127, 71, 0, 1), 0)).await?;
    let std::net::SocketAddr::V4(at) = outside.local_addr()? else { anyhow::bail!("not IPv4") };
    let mut mixed = table(3, address, &[&a]);
    mixed.services[0].endpoints.push(SocketAddrV4::new(Ipv4Addr::new(127, 71, 0, 2), 1));
    assert_eq!(host.client.set_services(mixed.clone()).await?, []);
    assert_eq!(answers(to).await?, names(&["a"]));
    mixed.services[0].endpoints = vec![at];
    host.client.set_services(mixed).await?;
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        while let Ok((mut stream, _)) = outside.accept().await {
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\noutside";
            let _ = stream.write_all(answer).await;
        }
    });
    assert_eq!(get(to, "/").await?.1, "outside");
    host.client.set_services(table(5, address, &[])).await?;
    assert!(get(to, "/").await.is_err(), "no endpoint: closed at once");
    host.client.set_services(ServiceTable { generation: 6, ..Default::default() }).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(tokio::net::TcpStream::connect(to).await.is_err(), "no Service: refused");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_reach_services_by_address_and_name() -> Result {
    let host = Host::start().await?;
    let server = web(&host, "served").await?;
    let address = service_address();
    host.client.set_services(table(1, address, &[&server])).await?;
    let caller = host.pod("asks").await?;
    host.start_container(host.spec(&caller, "main", "web", &[])).await?;
    let at = SocketAddrV4::new(caller.pod_ip, 8080);
    for name in [address.to_string(), "web.default.svc.cluster.local".into()] {
        let (_, body) = get(at, &format!("/fetch?http://{name}:8080/")).await?;
        assert_eq!(body, "200 hello from served\n", "{name}");
    }
    let (_, body) = get(at, "/fetch?http://elsewhere.example:8080/").await?;
    assert!(body.starts_with("error"), "{body}");
    // Connections that the host keeps for guests go where the table leads, at once.
    let other = web(&host, "other").await?;
    for (generation, (pod, name)) in
        [(&other, "other"), (&server, "served"), (&other, "other")].iter().enumerate()
    {
        host.client.set_services(table(2 + generation as u64, address, &[pod])).await?;
        let (_, body) = get(at, &format!("/fetch?http://{address}:8080/")).await?;
        assert_eq!(body, format!("200 hello from {name}\n"));
    }
    Ok(())
}

/// The address of a server that answers each datagram with a word.
async fn udp_server(word: &'static str) -> Result<SocketAddrV4> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::new(127, 71, 0, 1), 0)).await?;
    let std::net::SocketAddr::V4(at) = socket.local_addr()? else { anyhow::bail!("not IPv4") };
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(word.as_bytes(), from).await;
        }
    });
    Ok(at)
}

async fn datagram(to: SocketAddrV4) -> Result<String> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    socket.connect(to).await?;
    socket.send(b"?").await?;
    let mut buffer = [0; 64];
    let length = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await??;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_are_led_to_endpoints_and_back() -> Result {
    let host = Host::start().await?;
    let address = service_address();
    let to = SocketAddrV4::new(address, 5300);
    let endpoints = vec![udp_server("one").await?, udp_server("two").await?];
    let entry = ServiceEntry {
        name: "default/names".into(),
        port_name: String::new(),
        transport: Transport::Udp,
        address,
        port: 5300,
        endpoints,
        affinity_seconds: None,
    };
    let with = |affinity_seconds, generation| ServiceTable {
        generation,
        services: vec![ServiceEntry { affinity_seconds, ..entry.clone() }],
        ..ServiceTable::default()
    };
    assert_eq!(host.client.set_services(with(None, 1)).await?, []);
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        seen.insert(datagram(to).await?);
    }
    assert_eq!(seen.len(), 2, "each new client goes to any endpoint: {seen:?}");
    host.client.set_services(with(Some(60), 2)).await?;
    let first = datagram(to).await?;
    for _ in 0..20 {
        assert_eq!(datagram(to).await?, first, "one client address keeps its endpoint");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_decides_who_is_served() -> Result {
    let host = Host::start().await?;
    let (server, friend, stranger) =
        (web(&host, "kept").await?, web(&host, "friend").await?, web(&host, "stranger").await?);
    let address = service_address();
    let mut table = table(1, address, &[&server]);
    let rule = Rule {
        peers: Some(vec![Block { cidr: format!("{}/32", friend.pod_ip).parse().unwrap(), except: vec![] }]),
        ports: None,
    };
    let policy = Policy {
        name: "default/friends".into(),
        pods: vec![server.pod_ip],
        ingress: Some(vec![rule]),
        egress: None,
    };
    let asks = |pod: &SandboxSpec, host: Ipv4Addr| {
        let at = SocketAddrV4::new(pod.pod_ip, 8080);
        async move { Ok::<_, anyhow::Error>(get(at, &format!("/fetch?http://{host}:8080/")).await?.0) }
    };
    for (policies, expected) in [(vec![], 200), (vec![policy], 502), (vec![], 200)] {
        table.generation += 1;
        table.policies = policies;
        host.client.set_services(table.clone()).await?;
        for to in [server.pod_ip, address] {
            assert_eq!(asks(&friend, to).await?, 200);
            assert_eq!(asks(&stranger, to).await?, expected);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_cannot_be_opened_is_reported() -> Result {
    let host = Host::start().await?;
    let address = service_address();
    let taken = tokio::net::TcpListener::bind((address, 8080)).await?;
    let errors = host.client.set_services(table(1, address, &[])).await?;
    assert_eq!(errors.len(), 1);
    assert!(errors[0].message.contains("default/web"), "{}", errors[0].message);
    assert!(!errors[0].permission_denied);
    drop(taken);
    assert_eq!(host.client.set_services(table(2, address, &[])).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_pods_are_replaced() -> Result {
    let host = Host::start().await?;
    let address = service_address();
    let to = SocketAddrV4::new(address, 8080);
    let mut pods = vec![web(&host, "r0").await?, web(&host, "r1").await?];
    let all = |pods: &[SandboxSpec]| table(1, address, &pods.iter().collect::<Vec<_>>());
    host.client.set_services(all(&pods)).await?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut clients = Vec::new();
    for n in 0..8 {
        let (stop, count) = (stop.clone(), count.clone());
        clients.push(tokio::spawn(async move {
            let mut connection = Connection::open(to).await?;
            while !stop.load(Ordering::Relaxed) {
                let (status, _, open) = connection.get("/").await?;
                anyhow::ensure!(status == 200, "status {status}");
                count.fetch_add(1, Ordering::Relaxed);
                if !open || n % 2 == 0 {
                    connection = Connection::open(to).await?;
                }
            }
            anyhow::Ok(())
        }));
    }
    for n in 2..6 {
        pods.push(web(&host, &format!("r{n}")).await?);
        let old = pods.remove(0);
        // The worst order: the pod ends before the table says so.
        host.client.stop_container(&format!("{}-main", old.id), 5000).await?;
        host.client.set_services(all(&pods)).await?;
        host.client.remove_sandbox(&old.id).await?;
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await??;
    }
    assert!(count.load(Ordering::Relaxed) > 100);
    Ok(())
}
