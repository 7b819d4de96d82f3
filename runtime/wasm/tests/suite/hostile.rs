//! Guests and clients that mean harm: each meets its limit, and a neighbour in the same process goes on answering.

use std::{
    net::SocketAddrV4,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coracle_wasm::{
    compile,
    protocol::{SandboxSpec, State},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Connection, Host, Result, SOON, address, exit, get, mount};

/// The most sockets of a pod's guests.
const SOCKETS: usize = 1024;

/// A pod with a handler that answers.
async fn neighbour(host: &Host) -> Result<SocketAddrV4> {
    let pod = host.pod("neighbour").await?;
    host.start_container(host.spec(&pod, "main", "web", &[])).await?;
    Ok(SocketAddrV4::new(pod.pod_ip, 8080))
}

/// The neighbour answers on new connections, each within two seconds.
async fn answers(at: SocketAddrV4) -> Result {
    for _ in 0..20 {
        let answer = tokio::time::timeout(Duration::from_secs(2), get(at, "/")).await??;
        assert_eq!(answer, (200, "hello from neighbour\n".into()));
    }
    Ok(())
}

async fn web(host: &Host, name: &str, annotations: &[(&str, &str)]) -> Result<SandboxSpec> {
    let mut pod = host.pod_spec(name);
    pod.annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    host.client.create_sandbox(pod.clone()).await?;
    host.start_container(host.spec(&pod, "main", "web", &[])).await?;
    Ok(pod)
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_recursion_ends_the_guest_only() -> Result {
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    let pod = host.pod("recurses").await?;
    // What a compiler makes of endless recursion runs out of its own stack in linear memory: this one has none there.
    let module = r#"(module (memory (export "memory") 1)
        (func $deeper (result i32) (i32.add (i32.const 1) (call $deeper)))
        (func (export "_start") (drop (call $deeper))))"#;
    let mut spec = host.spec(&pod, "main", "probe", &[]);
    spec.artifact = host.dir.path().join("module/module.cwasm");
    compile::precompile(&wat::parse_str(module)?, &spec.artifact)?;
    let (state, printed) = host.run_in(&pod, spec).await?;
    let State::Exited { message, .. } = &state else { anyhow::bail!("{state:?}") };
    assert_eq!(exit(&state), (134, "Error"), "{printed}");
    assert!(message.contains("call stack exhausted"), "{message}");
    answers(at).await
}

/// Who accepts connections and keeps them, until it is aborted; and where.
async fn holder() -> Result<(String, tokio::task::JoinHandle<()>)> {
    let target = TcpListener::bind((address(), 0)).await?;
    let to = target.local_addr()?.to_string();
    let sink = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = target.accept().await {
            held.push(stream);
        }
    });
    Ok((to, sink))
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_sockets_that_were_let_go_count_too() -> Result {
    let host = Host::start().await?;
    let (to, sink) = holder().await?;
    let pod = host.pod("threes").await?;
    let (_, printed) = host.run_in(&pod, host.spec(&pod, "main", "p3-sockets", &["connect", &to])).await?;
    assert_eq!(printed, format!("first: {SOCKETS}\nagain: {SOCKETS}"));
    sink.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_a_guest_accepts_count_too() -> Result {
    const MORE: usize = 20;
    let host = Host::start().await?;
    let pod = host.pod("accepts").await?;
    host.start_container(host.spec(&pod, "main", "p3-sockets", &["accept", "9000"])).await?;
    host.prints(&pod, "main", &["listens"]).await?;
    let (mut clients, mut reset) = (tokio::task::JoinSet::new(), 0);
    // One is the listener's own.
    for _ in 0..SOCKETS - 1 + MORE {
        match TcpStream::connect((pod.pod_ip, 9000)).await {
            Ok(mut stream) => drop(clients.spawn(async move { stream.read(&mut [0]).await })),
            Err(_) => reset += 1,
        }
    }
    for _ in reset..MORE {
        tokio::time::timeout(SOON, clients.join_next()).await?;
    }
    // All others go on.
    assert!(tokio::time::timeout(Duration::from_millis(200), clients.join_next()).await.is_err());
    assert_eq!(clients.len(), SOCKETS - 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_sockets_stops_at_the_pods_limit() -> Result {
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    let (to, sink) = holder().await?;
    let (pod, volume) = (host.pod("floods").await?, tempfile::tempdir()?);
    let mut ids = Vec::new();
    // Both containers of a pod share its room. Alone, each would come to the end of its instance's handles, three a socket.
    let most = (SOCKETS / 5 * 3).to_string();
    for name in ["one", "two"] {
        let ready = format!("/data/{name}");
        let mut spec = host.spec(&pod, name, "probe", &["sockets", &to, &ready, &most]);
        spec.mounts = vec![mount(volume.path(), "/data", false)];
        ids.push(spec.id.clone());
        host.start_container(spec).await?;
    }
    host.prints(&pod, "one", &["held", "done"]).await?;
    host.prints(&pod, "two", &["held", "done"]).await?;
    let held =
        |name: &str| -> Result<usize> { Ok(std::fs::read_to_string(volume.path().join(name))?.parse()?) };
    assert_eq!(held("one")? + held("two")?, SOCKETS);
    answers(at).await?;
    // What one gives back, others can have.
    for id in &ids {
        host.client.stop_container(id, 0).await?;
    }
    let closes = TcpListener::bind((address(), 0)).await?;
    let to = closes.local_addr()?.to_string();
    tokio::spawn(async move { drop(closes.accept().await) });
    let (_, printed) = host.run_in(&pod, host.spec(&pod, "again", "probe", &["connect", &to])).await?;
    assert!(!printed.contains("error"), "{printed}");
    sink.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_files_stops_at_the_instances_limit() -> Result {
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    let (pod, volume) = (host.pod("opens").await?, tempfile::tempdir()?);
    std::fs::write(volume.path().join("file"), "x")?;
    let mut spec = host.spec(&pod, "main", "probe", &["files", "/data/file"]);
    spec.mounts = vec![mount(volume.path(), "/data", true)];
    let (state, printed) = host.run_in(&pod, spec).await?;
    let held: usize = printed.strip_prefix("held ").and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(exit(&state).0 != 0 || (1..=10_000).contains(&held), "{state:?}: {printed}");
    answers(at).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_changes_under_a_path_leads_nowhere_outside() -> Result {
    let host = Host::start().await?;
    let (pod, volume, outside) = (host.pod("races").await?, tempfile::tempdir()?, tempfile::tempdir()?);
    std::fs::write(outside.path().join("secret"), "outside")?;
    let (inside, link, at) =
        (volume.path().join("inside"), volume.path().join("link"), volume.path().join("at"));
    std::fs::create_dir(&inside)?;
    std::fs::write(inside.join("secret"), "inside")?;
    std::os::unix::fs::symlink("inside", &at)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, target) = (stop.clone(), outside.path().to_owned());
    let flips = std::thread::spawn(move || -> std::io::Result<()> {
        while !stopped.load(Ordering::Relaxed) {
            for to in [target.as_path(), "inside".as_ref()] {
                std::os::unix::fs::symlink(to, &link)?;
                std::fs::rename(&link, &at)?;
            }
        }
        Ok(())
    });
    let mut spec = host.spec(&pod, "main", "probe", &["hammer", "/data/at/secret", "3000"]);
    spec.mounts = vec![mount(volume.path(), "/data", true)];
    let ran = host.run_in(&pod, spec).await;
    stop.store(true, Ordering::Relaxed);
    flips.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    assert_eq!(ran?.1, r#"{"inside"}"#);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_lines_lets_its_log_be_rotated() -> Result {
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    let pod = host.pod("talks").await?;
    let spec = host.spec(&pod, "main", "probe", &["flood", "100000000"]);
    let (id, path) = (spec.id.clone(), spec.log_path.clone());
    host.start_container(spec).await?;
    host.prints(&pod, "main", &["xxx"]).await?;
    std::fs::rename(&path, path.with_extension("1"))?;
    tokio::time::timeout(Duration::from_secs(10), host.client.reopen_log(&id)).await??;
    host.prints(&pod, "main", &["xxx"]).await?;
    answers(at).await?;
    assert_eq!(exit(&host.client.stop_container(&id, 2000).await?.state), (143, "Error"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn huge_heads_are_refused() -> Result {
    let host = Host::start().await?;
    let pod = web(&host, "heads", &[]).await?;
    let at = SocketAddrV4::new(pod.pod_ip, 8080);
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nbig: ").await?;
    let line = vec![b'x'; 64 << 10];
    let mut written = 0;
    while written < 4 << 20 {
        match stream.write_all(&line).await {
            Ok(()) => written += line.len(),
            Err(_) => break,
        }
    }
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(get(at, "/").await?.0, 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_end_with_the_time_of_a_request() -> Result {
    const CLIENTS: usize = 300;
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    let pod = web(&host, "slow", &[("coracle.dev/http-timeout-seconds", "2")]).await?;
    let to = SocketAddrV4::new(pod.pod_ip, 8080);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(b"POST /length HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nx").await?;
        clients.push(stream);
    }
    answers(at).await?;
    let stats = host.client.stats(&[format!("{}-main", pod.id)]).await?;
    assert!(stats.iter().all(|s| s.instances <= 257), "{stats:?}");
    for mut stream in clients {
        let mut head = [0; 12];
        tokio::time::timeout(SOON, stream.read_exact(&mut head)).await??;
        let head = String::from_utf8_lossy(&head).into_owned();
        assert!(["HTTP/1.1 504", "HTTP/1.1 503"].contains(&head.as_str()), "{head}");
    }
    assert_eq!(get(to, "/").await?.0, 200, "there is room again");
    host.prints(&pod, "main", &["no answer within 2s"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_spins_ends_with_its_time() -> Result {
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    let pod = web(&host, "endless", &[("coracle.dev/http-timeout-seconds", "1")]).await?;
    let spins = get(SocketAddrV4::new(pod.pod_ip, 8080), "/spin");
    let (spun, calm) = tokio::join!(tokio::time::timeout(SOON, spins), answers(at));
    calm?;
    assert_eq!(spun??.0, 504);
    let mut wrong = host.pod_spec("wrong");
    wrong.annotations.insert("coracle.dev/http-timeout-seconds".into(), "soon".into());
    host.client.create_sandbox(wrong.clone()).await?;
    let refused = host.start_container(host.spec(&wrong, "main", "web", &[])).await;
    assert!(refused.is_err_and(|e| e.to_string().contains("\"soon\"")));
    Ok(())
}

/// Outgoing requests over the pod's limit fail at once, for the guest to see.
#[tokio::test(flavor = "multi_thread")]
async fn guests_that_wait_for_others_leave_the_neighbour_alone() -> Result {
    let host = Host::start().await?;
    let at = neighbour(&host).await?;
    // It accepts and never answers.
    let silent = TcpListener::bind((address(), 0)).await?;
    let url = format!("/fetch?http://{}/", silent.local_addr()?);
    let pod = web(&host, "waits", &[("coracle.dev/http-timeout-seconds", "2")]).await?;
    let to = SocketAddrV4::new(pod.pod_ip, 8080);
    let mut all = Vec::new();
    for _ in 0..100 {
        let url = url.clone();
        all.push(tokio::spawn(async move { Connection::open(to).await?.get(&url).await }));
    }
    answers(at).await?;
    for one in all {
        let (status, body, _) = one.await??;
        assert_eq!(status, 504, "{body}");
    }
    Ok(())
}

/// Two guests with limits of 50m and 100m: what they get is as one to two, within a tenth, over ten seconds.
#[tokio::test(flavor = "multi_thread")]
async fn cpu_limits_hold_to_a_tenth() -> Result {
    let host = Host::start().await?;
    let mut ids = Vec::new();
    for (name, millis) in [("less", 50), ("more", 100)] {
        let pod = host.pod(name).await?;
        let mut spec = host.spec(&pod, "main", "probe", &["spin"]);
        spec.cpu_millis = Some(millis);
        ids.push(spec.id.clone());
        host.start_container(spec).await?;
    }
    let used = async || -> Result<Vec<u64>> {
        let stats = host.client.stats(&[]).await?;
        Ok(ids.iter().filter_map(|id| stats.iter().find(|s| s.id == *id)).map(|s| s.cpu_nanos).collect())
    };
    // What a guest overdraws is paid back later: a window that begins or ends while a tick of the host is late, as it may be
    // beside sixty other tests, is off by that. A host that does not hold its limits fails every window.
    let mut measured = Vec::new();
    for _ in 0..3 {
        let (before, began) = (used().await?, std::time::Instant::now());
        // This is the measurement, not a wait for something to happen.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let (after, took) = (used().await?, began.elapsed());
        let spent: Vec<f64> = after.iter().zip(&before).map(|(a, b)| (a - b) as f64).collect();
        let ratio = spent[1] / spent[0];
        let millis = spent[1] / took.as_nanos() as f64 * 1000.0;
        if (1.8..2.2).contains(&ratio) && (80.0..110.0).contains(&millis) {
            return Ok(());
        }
        measured.push(format!("{ratio}, {millis} millicores of 100: {spent:?}"));
    }
    Err(anyhow::anyhow!("{measured:#?}"))
}
