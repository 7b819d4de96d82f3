//! wasi:http handlers: served, isolated from each other, drained.

use std::{net::SocketAddrV4, time::Duration};

use coracle_wasm::client::Error;

use crate::harness::{Connection, Host, Result, exit, get};

/// Waits until a container has been asked so often; its answers may be under way.
async fn asked(host: &Host, id: &str, times: u64) -> Result {
    for _ in 0..1500 {
        let stats = host.client.stats(&[id.to_owned()]).await?;
        if stats.iter().any(|s| s.requests >= times) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("container {id} was not asked {times} times within 30 s")
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_on_a_pod_address() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("hello").await?;
    let spec = host.spec(&pod, "main", "web", &[]);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    let idle = host.client.stats(std::slice::from_ref(&id)).await?;
    let [one] = idle.as_slice() else { panic!("{idle:?}") };
    assert_eq!((one.instances, one.memory_bytes), (0, 0), "nothing is kept of it");
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    assert_eq!(get(at, "/").await?, (200, "hello from hello\n".into()));
    assert_eq!(get(at, "/env?PORT").await?.1, "8080");
    let (status, body) = get(at, "/big?300000").await?;
    assert_eq!((status, body.len()), (200, 300_000));
    get(at, "/print?line").await?;
    let stats = host.client.stats(std::slice::from_ref(&id)).await?;
    assert!(stats.iter().all(|s| s.requests == 4 && s.instances == 1 && s.cpu_nanos > 0), "{stats:?}");
    assert!(
        stats.iter().all(|s| s.cold_starts == 1 && s.latency.counts.iter().sum::<u64>() == 4),
        "{stats:?}"
    );
    let status = host.client.stop_container(&id, 5000).await?;
    assert_eq!(exit(&status.state), (0, "Completed"));
    assert_eq!(host.printed(&pod, "main")?, "line");
    assert!(get(at, "/").await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_ends_one_instance_only() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("trapping").await?;
    host.start_container(host.spec(&pod, "main", "web", &[])).await?;
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    let mut connection = Connection::open(at).await?;
    for path in ["/trap", "/exit", "/trap"] {
        assert_eq!(connection.get(path).await?.0, 500, "{path}");
        assert_eq!(connection.get("/").await?.0, 200);
    }
    host.prints(&pod, "main", &["as asked", "wasm backtrace"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_guest_does_not_starve_its_neighbour() -> Result {
    let host = Host::start().await?;
    let busy = host.pod("busy").await?;
    let spec = host.spec(&busy, "main", "web", &[]);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    let calm = host.pod("calm").await?;
    host.start_container(host.spec(&calm, "main", "web", &[])).await?;
    for _ in 0..4 {
        tokio::spawn(get(SocketAddrV4::new(busy.pod_ip, 8080), "/spin"));
    }
    asked(&host, &id, 4).await?;
    for _ in 0..20 {
        let answer = get(SocketAddrV4::new(calm.pod_ip, 8080), "/");
        let answer = tokio::time::timeout(Duration::from_secs(2), answer).await??;
        assert_eq!(answer.0, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_over_its_memory_is_oom_killed() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("fat").await?;
    let mut spec = host.spec(&pod, "main", "web", &[]);
    spec.memory_limit_bytes = Some(16 << 20);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    assert_eq!(get(at, "/grow?4").await?.0, 200);
    // The answer is a 500, or the connection ends with the container.
    if let Ok((status, _)) = get(at, "/grow?64").await {
        assert_eq!(status, 500);
    }
    assert_eq!(exit(&host.ended(&id).await?), (137, "OOMKilled"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_are_taken() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("ports").await?;
    let words = |result: Result<_, Error>| match result {
        Err(error) => error.to_string(),
        Ok(_) => "no error".to_owned(),
    };
    let outside = tokio::net::TcpListener::bind((pod.pod_ip, 8080)).await?;
    let said = words(host.start_container(host.spec(&pod, "one", "web", &[])).await);
    let at = format!("({}:8080)", pod.pod_ip);
    assert_eq!(said, format!("port 8080 of pod default/ports {at} is in use"));
    drop(outside);
    // The same container starts once the port is free.
    host.client.start_container("sandbox-ports-one").await?;
    let said = words(host.start_container(host.spec(&pod, "two", "web", &[])).await);
    assert!(said.starts_with("port 8080 of pod default/ports is already served"), "{said}");
    let mut spec = host.spec(&pod, "three", "web", &[]);
    spec.http_ports = vec![8081, 8082];
    host.start_container(spec).await?;
    for port in [8080, 8081, 8082] {
        assert_eq!(get(SocketAddrV4::new(pod.pod_ip, port), "/").await?.0, 200);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_is_in_flight() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("drained").await?;
    let spec = host.spec(&pod, "main", "web", &[]);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    let mut idle = Connection::open(at).await?;
    idle.get("/").await?;
    let slow = tokio::spawn(async move { get(at, "/sleep?3000").await });
    asked(&host, &id, 2).await?;
    let client = host.client.clone();
    let stop = tokio::spawn(async move { client.stop_container(&id, 10_000).await });
    // Until new connections are refused, which is while the slow one goes on.
    while get(at, "/").await.is_ok() {
        assert!(!slow.is_finished(), "new connections are refused at once");
    }
    assert!(!slow.is_finished(), "it is waited for");
    let (status, _, open) = idle.get("/").await?;
    assert_eq!((status, open), (200, false), "an open connection is told to close");
    assert_eq!(slow.await??, (200, "slept".into()));
    assert_eq!(exit(&stop.await??.state), (0, "Completed"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_grace_a_handler_is_killed() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("stuck").await?;
    let spec = host.spec(&pod, "main", "web", &[]);
    let id = spec.id.clone();
    host.start_container(spec).await?;
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    let spinning = tokio::spawn(get(at, "/spin"));
    asked(&host, &id, 1).await?;
    let status = host.client.stop_container(&id, 300).await?;
    assert_eq!(exit(&status.state), (137, "Error"));
    let _ = spinning.await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_instance_for_each_request() -> Result {
    let host = Host::start().await?;
    let pod = host.pod("fresh").await?;
    let mut spec = host.spec(&pod, "main", "hello", &[]);
    spec.fresh_instance = true;
    host.start_container(spec).await?;
    let reused = host.pod("reused").await?;
    host.start_container(host.spec(&reused, "main", "hello", &[])).await?;
    for n in 1..=3 {
        let fresh = get(SocketAddrV4::new(pod.pod_ip, 8080), "/").await?.1;
        assert!(fresh.contains("request 1)"), "{fresh}");
        let again = get(SocketAddrV4::new(reused.pod_ip, 8080), "/").await?.1;
        assert!(again.contains(&format!("request {n})")), "{again}");
    }
    Ok(())
}
