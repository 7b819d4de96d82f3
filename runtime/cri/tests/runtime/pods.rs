//! Whole pods: two containers that share a volume and the loopback, handlers on their ports, Services in front of them,
//! and requests that go on while the service is killed.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use coracle_cri::PORTS_ANNOTATION;
use coracle_cri::conformance::{Pod, Program, Suite};
use coracle_cri_api::network::service_table_client::ServiceTableClient;
use coracle_cri_api::{network, v1};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::Code;

use crate::service::Service;

/// A guest that `cargo xtask guests` has built.
fn guest(name: &str) -> Vec<u8> {
    let folder = std::env::var("CORACLE_GUESTS")
        .unwrap_or_else(|_| format!("{}/../../target/guests", env!("CARGO_MANIFEST_DIR")));
    let path = Path::new(&folder).join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}; `cargo xtask guests` builds it", path.display()))
}

type Http = Client<HttpConnector, Empty<Bytes>>;

fn http() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

async fn get(http: &Http, at: &str) -> Result<String, String> {
    let uri = format!("http://{at}/").parse().map_err(|e| format!("{at}: {e}"))?;
    let answer = http.get(uri).await.map_err(|e| format!("{at}: {e:?}"))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|e| format!("{at}: {e:?}"))?.to_bytes();
    match status.is_success() {
        true => Ok(String::from_utf8_lossy(&body).into_owned()),
        false => Err(format!("{at}: {status}")),
    }
}

async fn web_config(suite: &Suite, pod: &Pod<'_>, name: &str, ports: &str) -> v1::ContainerConfig {
    let program = Program { image: "web:v1".into(), command: Vec::new() };
    let spec = Some(v1::ImageSpec { image: program.image.clone(), ..Default::default() });
    let status = v1::ImageStatusRequest { image: spec, verbose: false };
    if suite.images.clone().image_status(status).await.unwrap().into_inner().image.is_none() {
        suite.pull(&program.image).await.unwrap();
    }
    let mut config = pod.container_config(name, &program, &program.image);
    let value = pod.config.metadata.as_ref().unwrap().name.clone();
    config.envs.push(v1::KeyValue { key: "POD".into(), value });
    if !ports.is_empty() {
        config.annotations.insert(PORTS_ANNOTATION.into(), ports.into());
    }
    config
}

async fn web_pod<'a>(suite: &'a Suite, name: &str) -> (Pod<'a>, String) {
    let pod = suite.pod(name).await.unwrap();
    let id = pod.create_as(web_config(suite, &pod, "web", "").await).await.unwrap();
    pod.start(&id).await.unwrap();
    (pod, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_containers_share_a_volume_and_the_loopback() {
    let service = Service::start().await;
    service.registry.push("probe", "v1", &guest("probe"));
    let suite = service.suite().await;
    let pod = suite.pod("pair").await.unwrap();
    let image = suite.pull("probe:v1").await.unwrap();
    let volume = service.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let make = async |name: &str, args: &[&str]| {
        let program = Program { image: "probe:v1".into(), command: vec!["probe".into()] };
        let mut config = pod.container_config(name, &program, &image);
        config.args = args.iter().map(|a| (*a).to_owned()).collect();
        config.mounts.push(v1::Mount {
            container_path: "/data".into(),
            host_path: volume.display().to_string(),
            ..Default::default()
        });
        let id = pod.create_as(config).await.unwrap();
        pod.start(&id).await.unwrap();
        id
    };
    let server = make("server", &["listen", "127.0.0.1:9000", "/data/ready"]).await;
    for _ in 0..500 {
        if std::fs::read_to_string(volume.join("ready")).is_ok_and(|t| !t.is_empty()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = make("client", &["connect", "127.0.0.1:9000"]).await;
    for id in [&client, &server] {
        let status = suite.exited(id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{status:?}");
    }
    let reader = make("reader", &["read", "/data/ready"]).await;
    suite.exited(&reader).await.unwrap();
    let said = async |id: &str| {
        let status = suite.status(id).await.unwrap();
        suite.log(&status.log_path, 1).await.unwrap()[0].clone()
    };
    let (stream, text) = said(&client).await;
    assert!(stream == "stdout" && text.contains("hello"), "{text}");
    assert!(said(&reader).await.1.contains(":9000"), "the volume is not shared");
    let failing = make("failing", &["fail"]).await;
    let status = suite.exited(&failing).await.unwrap();
    assert!(status.exit_code != 0 && status.reason == "Error", "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_the_image_is_run_in_its_container() {
    let service = Service::start().await;
    service.registry.push_with_command("web", "v1", &guest("web"), "look", &guest("probe"));
    service.registry.push_with_command("bad", "v1", &guest("web"), "serve", &guest("switch"));
    let suite = service.suite().await;
    let refused = suite.pull("bad:v1").await.unwrap_err().to_string();
    assert!(refused.contains("command serve: the component does not export wasi:cli/run"), "{refused}");
    let (pod, id) = web_pod(&suite, "tools").await;
    let exec = async |cmd: &[&str]| {
        let cmd = cmd.iter().map(|c| (*c).to_owned()).collect();
        let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 20 };
        suite.runtime.clone().exec_sync(request).await.unwrap().into_inner()
    };
    // It has the container's environment, and its own arguments.
    let said = exec(&["look", "env"]).await;
    let printed = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.exit_code == 0 && printed.contains("POD=tools"), "{said:?}");
    assert_eq!(exec(&["look", "print", "hello"]).await.stdout, b"hello\nno newline");
    assert_eq!(exec(&["other"]).await.exit_code, 127);

    // As a container of its own too, to its end.
    let mut config = web_config(&suite, &pod, "prints", "").await;
    config.command = vec!["look".into(), "print".into()];
    config.args = vec!["of its own".into()];
    let id = pod.create_as(config).await.unwrap();
    pod.start(&id).await.unwrap();
    let ended = suite.exited(&id).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    assert_eq!(suite.log(&ended.log_path, 3).await.unwrap()[0].1, "of its own");
    pod.end().await.unwrap();
}

/// What a Deployment says of `command` and `args` reaches a handler, or is refused by name.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_told_its_arguments_and_takes_no_other_command() {
    let service = Service::start().await;
    service.registry.push("web", "v1", &guest("web"));
    let (suite, http) = (service.suite().await, http());
    let pod = suite.pod("told").await.unwrap();
    let ip = pod.ip().await.unwrap();
    let words = |all: &[&str]| all.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    for (port, command, args, told) in [
        ("9001", &[][..], &["--color", "red"][..], "web --color red"),
        ("9002", &["/web.wasm"], &["--color", "blue"], "/web.wasm --color blue"),
    ] {
        let ports = format!(r#"[{{"containerPort":{port}}}]"#);
        let mut config = web_config(&suite, &pod, "web", &ports).await;
        (config.command, config.args) = (words(command), words(args));
        config.metadata.as_mut().unwrap().attempt = port.parse().unwrap();
        let id = pod.create_as(config).await.unwrap();
        pod.start(&id).await.unwrap();
        assert_eq!(get(&http, &format!("{ip}:{port}/args?")).await.unwrap(), told);
    }
    let mut config = web_config(&suite, &pod, "sleeps", r#"[{"containerPort":9003}]"#).await;
    config.command = words(&["sleep", "3600"]);
    let status = pod.create_as(config).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let told = "container sleeps: command \"sleep\" is not in image web:v1, which has no commands beside it";
    assert!(status.message().starts_with(told), "{status:?}");
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_are_served_on_the_ports_they_declare() {
    let service = Service::start().await;
    service.registry.push("web", "v1", &guest("web"));
    let (suite, http) = (service.suite().await, http());
    let (pod, _) = web_pod(&suite, "plain").await;
    let ip = pod.ip().await.unwrap();
    assert_eq!(get(&http, &format!("{ip}:8080")).await.unwrap(), "hello from plain\n");

    let pod = suite.pod("declares").await.unwrap();
    let ports = r#"[{"name":"a","containerPort":9001},{"containerPort":9002,"protocol":"TCP"}]"#;
    let first = pod.create_as(web_config(&suite, &pod, "first", ports).await).await.unwrap();
    pod.start(&first).await.unwrap();
    let ip = pod.ip().await.unwrap();
    for port in [9001, 9002] {
        assert_eq!(get(&http, &format!("{ip}:{port}")).await.unwrap(), "hello from declares\n");
    }
    let taken = web_config(&suite, &pod, "second", r#"[{"containerPort":9002}]"#).await;
    let status = pod.create_as(taken).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("9002"), "{status:?}");

    // A port that someone outside took: the container cannot start, and says why.
    let pod = suite.pod("taken").await.unwrap();
    let outside = std::net::TcpListener::bind((pod.ip().await.unwrap(), 9003)).unwrap();
    let config = web_config(&suite, &pod, "late", r#"[{"containerPort":9003}]"#).await;
    let id = pod.create_as(config).await.unwrap();
    let status = pod.start(&id).await.unwrap_err();
    assert!(status.message().contains("9003"), "{status:?}");
    let ended = suite.status(&id).await.unwrap();
    assert_eq!((ended.state(), ended.reason.as_str()), (v1::ContainerState::ContainerExited, "StartError"));
    drop(outside);
}

/// A guest has no signals: SIGKILL ends it at once, any other asks it to end, and so how it ended tells them apart.
#[tokio::test(flavor = "multi_thread")]
async fn of_the_signals_that_stop_a_container_sigkill_alone_is_told_apart() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let pod = suite.pod("signals").await.unwrap();
    let program = suite.target.programs.sleeps.clone();
    let image = suite.pull(&program.image).await.unwrap();
    for (name, signal, code) in [
        ("kill", v1::Signal::Sigkill, 137),
        ("usr1", v1::Signal::Sigusr1, 143),
        ("term", v1::Signal::Sigterm, 143),
        ("none", v1::Signal::RuntimeDefault, 143),
    ] {
        let mut config = pod.container_config(name, &program, &image);
        config.set_stop_signal(signal);
        let id = pod.create_as(config).await.unwrap();
        pod.start(&id).await.unwrap();
        let stop = v1::StopContainerRequest { container_id: id.clone(), timeout: 600 };
        tokio::time::timeout(Duration::from_secs(60), suite.runtime.clone().stop_container(stop))
            .await
            .expect("stopped long before its grace ends")
            .unwrap();
        let ended = suite.status(&id).await.unwrap();
        assert_eq!(ended.exit_code, code, "{name}: {ended:?}");
        let told = if signal == v1::Signal::RuntimeDefault { v1::Signal::Sigterm } else { signal };
        assert_eq!(ended.stop_signal(), told, "{name}");
    }
    pod.end().await.unwrap();
}

fn table(generation: u64, address: &str, endpoints: &[String]) -> network::Table {
    let endpoint = |ip: &String| network::Endpoint { address: ip.clone(), port: 8080 };
    network::Table {
        generation,
        services: vec![network::Service {
            name: "default/web".into(),
            listeners: vec![network::Listener {
                address: address.into(),
                port: 8080,
                endpoints: endpoints.iter().map(endpoint).collect(),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Sends one table and waits until it is in use; then the feed is gone.
async fn feed(service: &Service, table: network::Table) -> network::Applied {
    let channel = coracle_cri_api::connect(&service.endpoint()).await.unwrap();
    let tables = futures::stream::iter([table]);
    // The stream of tables may end before the answer comes: the last one is still applied.
    let mut answers = ServiceTableClient::new(channel).sync(tables).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_lead_to_ready_endpoints_without_the_feed() {
    let mut service = Service::start().await;
    service.registry.push("web", "v1", &guest("web"));
    let suite = service.suite().await;
    let (one, _) = web_pod(&suite, "one").await;
    let (two, _) = web_pod(&suite, "two").await;
    let (one, two) = (one.ip().await.unwrap(), two.ip().await.unwrap());
    let address = &service.service_address();
    let mut both = table(7, address, &[one, two.clone()]);
    let mut broken = both.services[0].clone();
    broken.name = "default/broken".into();
    broken.listeners[0].address = "not an address".into();
    both.services.push(broken);
    let applied = feed(&service, both).await;
    assert_eq!(applied.generation, 7);
    assert_eq!(applied.errors.len(), 1, "{applied:?}");
    assert_eq!(applied.errors[0].reason, "InvalidAddress");

    // A connection of its own each time, so that each is balanced anew.
    let seen = async || {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.insert(get(&http(), &format!("{address}:8080")).await.unwrap());
        }
        seen
    };
    assert_eq!(seen().await.len(), 2, "both endpoints serve");
    service.kill();
    assert_eq!(seen().await.len(), 2, "the table stays while the service is away");
    service.spawn().await;
    let applied = feed(&service, table(8, address, &[two])).await;
    assert!(applied.errors.is_empty(), "{applied:?}");
    assert_eq!(seen().await.into_iter().collect::<Vec<_>>(), ["hello from two\n"]);
    let none = feed(&service, network::Table { generation: 9, ..Default::default() }).await;
    assert!(none.errors.is_empty());
    assert!(get(&http(), &format!("{address}:8080")).await.is_err(), "a Service that is gone answers");
}

/// The listeners of Services are in the first host: pods of others are reached through them, and reach each other.
#[tokio::test(flavor = "multi_thread")]
async fn pods_in_other_processes_are_reached_through_services_and_reach_them() {
    // Every process has more than one mapping: so each pod gets a host of its own.
    let service = Service::start_with(&["--host-mappings", "1"]).await;
    service.registry.push("web", "v1", &guest("web"));
    let suite = service.suite().await;
    let (one, _) = web_pod(&suite, "one").await;
    let (two, _) = web_pod(&suite, "two").await;
    let alone = suite.run_as(suite.pod_config("alone"), "wasm-isolated").await.unwrap();
    let id = alone.create_as(web_config(&suite, &alone, "web", "").await).await.unwrap();
    alone.start(&id).await.unwrap();
    let pods = [(&one, "one"), (&two, "two"), (&alone, "alone")];
    let address = |n: usize| service.service_address().replace(".7", &format!(".{}", 7 + n));
    let mut tables = table(1, "", &[]);
    tables.services.clear();
    let mut ips = Vec::new();
    for (n, (pod, name)) in pods.iter().enumerate() {
        ips.push(pod.ip().await.unwrap());
        let mut led = table(1, &address(n), &ips[n..=n]).services.remove(0);
        led.name = format!("default/{name}");
        tables.services.push(led);
        let name = format!("{name}.default.svc.cluster.local");
        tables.names.push(network::Name { name, addresses: vec![address(n)], ..Default::default() });
    }
    let applied = feed(&service, tables.clone()).await;
    assert!(applied.errors.is_empty(), "{applied:?}");
    // On connections of their own, each led anew: a table reaches the first host before this answers, and the others soon after it.
    let soon = async |at: String, wanted: String| {
        let mut last = Err(String::new());
        for _ in 0..250 {
            last = get(&http(), &at).await;
            if last.as_ref() == Ok(&wanted) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{at}: {last:?} instead of {wanted:?}");
    };
    for (n, (_, name)) in pods.iter().enumerate() {
        soon(format!("{}:8080", address(n)), format!("hello from {name}\n")).await;
        for (from, ip) in pods.iter().zip(&ips) {
            for to in [address(n), format!("{name}.default.svc.cluster.local")] {
                let asked = format!("{ip}:8080/fetch?http://{to}:8080");
                println!("{} asks {to}", from.1);
                soon(asked, format!("200 hello from {name}\n")).await;
            }
        }
    }
    // Another table is theirs too: one Service has gone over to another pod.
    tables.generation = 2;
    tables.services[0].listeners[0].endpoints[0].address.clone_from(&ips[2]);
    feed(&service, tables).await;
    soon(format!("{}:8080", address(0)), "hello from alone\n".into()).await;
    for ip in &ips {
        let asked = format!("{ip}:8080/fetch?http://one.default.svc.cluster.local:8080");
        soon(asked, "200 hello from alone\n".into()).await;
    }
    for (pod, _) in pods {
        pod.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_the_service_is_killed() {
    const CONNECTIONS: usize = 32;
    const REQUESTS: usize = 10_000;
    let mut service = Service::start().await;
    service.registry.push("web", "v1", &guest("web"));
    let suite = service.suite().await;
    let (pod, id) = web_pod(&suite, "busy").await;
    let at: SocketAddr = format!("{}:8080", pod.ip().await.unwrap()).parse().unwrap();
    let before = suite.status(&id).await.unwrap();
    let (done, kills_over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let load = (0..CONNECTIONS).map(|_| {
        let (done, kills_over) = (done.clone(), kills_over.clone());
        tokio::spawn(async move {
            let http = http();
            while done.fetch_add(1, Ordering::Relaxed) < REQUESTS || !kills_over.load(Ordering::Relaxed) {
                get(&http, &at.to_string()).await?;
            }
            Ok::<_, String>(())
        })
    });
    let load: Vec<_> = load.collect();
    // Requests are answered before each kill, and while the service is away.
    let more = async || {
        let enough = done.load(Ordering::Relaxed) + CONNECTIONS * 4;
        for _ in 0..3000 {
            if done.load(Ordering::Relaxed) >= enough {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("requests are not answered any more");
    };
    for _ in 0..3 {
        more().await;
        service.kill();
        more().await;
        service.spawn().await;
    }
    kills_over.store(true, Ordering::Relaxed);
    for connection in load {
        connection.await.unwrap().unwrap();
    }
    assert!(done.load(Ordering::Relaxed) >= REQUESTS);
    let suite = service.suite().await;
    let after = suite.status(&id).await.unwrap();
    assert_eq!((after.state(), after.started_at), (before.state(), before.started_at));
}

/// Many pods at once: every one answers, and all of them go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_come_and_go() {
    const PODS: usize = 100;
    let service = Service::start().await;
    service.registry.push("web", "v1", &guest("web"));
    let suite = service.suite().await;
    suite.pull("web:v1").await.unwrap();
    let http = http();
    let began = std::time::Instant::now();
    let pods = futures::future::join_all((0..PODS).map(async |n| {
        let (pod, _) = web_pod(&suite, &format!("many-{n}")).await;
        let at = format!("{}:8080", pod.ip().await.unwrap());
        assert_eq!(get(&http, &at).await.unwrap(), format!("hello from many-{n}\n"));
        pod
    }))
    .await;
    println!("{PODS} pods answer after {:?}", began.elapsed());
    let list = v1::ListContainersRequest { filter: None };
    let listed = suite.runtime.clone().list_containers(list).await.unwrap().into_inner().containers;
    assert_eq!(listed.len(), PODS);
    futures::future::join_all(pods.iter().map(async |pod| pod.end().await.unwrap())).await;
    println!("and are gone after {:?}", began.elapsed());
    for folder in ["sandboxes", "containers"] {
        let left = std::fs::read_dir(service.state_dir().join(folder)).unwrap().count();
        assert_eq!(left, 0, "records left in {folder}");
    }
}
