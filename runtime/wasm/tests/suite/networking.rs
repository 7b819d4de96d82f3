//! What guests reach: their pod, its loopback, other pods; never the host's loopback.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::harness::{Host, Result, SOON, get, mount};

/// A listener of the host that says so.
async fn outside(at: Ipv4Addr) -> Result<SocketAddrV4> {
    let listener = tokio::net::TcpListener::bind((at, 0)).await?;
    let std::net::SocketAddr::V4(address) = listener.local_addr()? else { anyhow::bail!("not IPv4") };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"the host").await;
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hosts_loopback_is_out_of_reach() -> Result {
    let host = Host::start().await?;
    for (n, at) in ["127.0.0.1", "127.0.1.1", "127.1.2.3", "127.112.0.1", "127.200.0.1"].iter().enumerate() {
        let secret = outside(at.parse()?).await?;
        let name = format!("reach-{n}");
        let (_, printed) = host.run(&name, &["connect", &secret.to_string()]).await?;
        assert!(printed.starts_with("error"), "{secret}: {printed}");
        assert!(!printed.contains("the host"), "{secret}: {printed}");
        let name = format!("udp-{n}");
        let (_, printed) = host.run(&name, &["udp", "0.0.0.0:0", &secret.to_string()]).await?;
        let own = *at == "127.0.0.1"; // a datagram to the pod's own loopback goes nowhere
        assert!(own || printed.starts_with("error"), "{secret}: {printed}");
    }
    let secret = outside(Ipv4Addr::LOCALHOST).await?;
    for form in [format!("[::ffff:127.0.0.1]:{}", secret.port()), format!("0.0.0.0:{}", secret.port())] {
        let name = format!("form-{}", form.len());
        let (_, printed) = host.run(&name, &["connect", &form]).await?;
        assert!(printed.starts_with("error"), "{form}: {printed}");
    }
    let web = host.pod("fetches").await?;
    host.start_container(host.spec(&web, "main", "web", &[])).await?;
    let at = SocketAddrV4::new(web.pod_ip, 8080);
    for name in ["localhost", "127.0.0.1", "127.0.1.1"] {
        let (_, body) = get(at, &format!("/fetch?http://{name}:{}/", secret.port())).await?;
        assert!(body.starts_with("error"), "{name}: {body}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_binds_its_pods_addresses_only() -> Result {
    let host = Host::start().await?;
    for (name, at) in [("lo", "127.0.0.2:0"), ("other", "127.64.0.1:0")] {
        let (_, printed) = host.run(name, &["listen", at]).await?;
        assert!(printed.starts_with("error"), "{at}: {printed}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_containers_share_a_volume_and_the_loopback() -> Result {
    let host = Host::start().await?;
    let volume = tempfile::tempdir()?;
    // Another pod's loopback is another one.
    for (name, bind) in [("shared", "127.0.0.1:9000"), ("wild", "0.0.0.0:9000")] {
        let pod = host.pod(name).await?;
        let other = host.pod(&format!("{name}-other")).await?;
        let mut spec = host.spec(&pod, "server", "probe", &["listen", bind, "/data/ready"]);
        spec.mounts = vec![mount(volume.path(), "/data", false)];
        let server = spec.id.clone();
        host.start_container(spec).await?;
        let ready = volume.path().join("ready");
        let wait = async {
            while !std::fs::read_to_string(&ready).is_ok_and(|t| !t.is_empty()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(SOON, wait).await?;
        let connect = ["connect", "127.0.0.1:9000"];
        let (_, printed) = host.run_in(&other, host.spec(&other, "c", "probe", &connect)).await?;
        assert_eq!(printed, "error ConnectionRefused");
        let (_, printed) = host.run_in(&pod, host.spec(&pod, "client", "probe", &connect)).await?;
        assert!(printed.contains(": hello "), "{printed}");
        host.ended(&server).await?;
        let mut spec = host.spec(&pod, "reader", "probe", &["read", "/data/ready"]);
        spec.mounts = vec![mount(volume.path(), "/data", true)];
        let (_, printed) = host.run_in(&pod, spec).await?;
        assert!(printed.contains(":9000"), "{printed}");
        std::fs::remove_file(&ready)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_see_who_calls() -> Result {
    let host = Host::start().await?;
    let server = host.pod("server").await?;
    let volume = tempfile::tempdir()?;
    let mut spec = host.spec(&server, "main", "probe", &["listen", "0.0.0.0:7000", "/data/ready"]);
    spec.mounts = vec![mount(volume.path(), "/data", false)];
    host.start_container(spec).await?;
    let wait = async {
        while !volume.path().join("ready").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await?;
    let caller = host.pod("caller").await?;
    let to = format!("{}:7000", server.pod_ip);
    let (_, printed) = host.run_in(&caller, host.spec(&caller, "c", "probe", &["connect", &to])).await?;
    let ip = caller.pod_ip;
    assert_eq!(printed, format!("connected from {ip} to {to}: hello {ip}"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_a_pod() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("named").await?;
    for (container, name, expected) in [
        ("a", "localhost", "[127.0.0.1]".to_owned()),
        ("b", "named", format!("[{}]", pod.pod_ip)),
        ("c", "192.0.2.7", "[192.0.2.7]".to_owned()),
    ] {
        let (_, printed) = host.run_in(&pod, host.spec(&pod, container, "probe", &["resolve", name])).await?;
        assert_eq!(printed, expected, "{name}");
    }
    let (_, printed) = host.run("stranger", &["resolve", "example.com"]).await?;
    assert!(printed.starts_with("error"), "{printed}");
    Ok(())
}
