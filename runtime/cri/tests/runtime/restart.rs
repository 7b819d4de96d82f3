//! Killing the service stops no pod; killing the wasm host is noticed.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_cri::conformance::Suite;
use coracle_cri_api::v1;
use coracle_wasm::client::HostClient;

use crate::service::Service;

async fn snapshot(suite: &Suite) -> BTreeMap<String, (i32, i64, i64)> {
    let list = suite.runtime.clone().list_containers(v1::ListContainersRequest { filter: None }).await;
    let mut found = BTreeMap::new();
    for container in list.unwrap().into_inner().containers {
        let status = suite.status(&container.id).await.unwrap();
        found.insert(container.id, (status.state, status.created_at, status.started_at));
    }
    found
}

async fn host_pid(service: &Service) -> u32 {
    let socket = coracle_cri::host::socket(&service.state_dir());
    HostClient::connect(&socket).await.unwrap().inspect().await.unwrap().pid
}

async fn ready(suite: &Suite) {
    for _ in 0..500 {
        let request = v1::StatusRequest { verbose: false };
        let status = suite.runtime.clone().status(request).await.unwrap().into_inner().status.unwrap();
        if status.conditions.iter().all(|c| c.status) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the runtime is not ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_the_service() {
    let mut service = Service::start().await;
    let suite = service.suite().await;
    let programs = suite.target.programs.clone();
    let pod = suite.pod("survivor").await.unwrap();
    let runs = pod.create("runs", &programs.sleeps).await.unwrap();
    pod.start(&runs).await.unwrap();
    let created = pod.create("created", &programs.speaks_and_fails).await.unwrap();
    let ended = pod.create("ended", &programs.speaks_and_fails).await.unwrap();
    pod.start(&ended).await.unwrap();
    suite.exited(&ended).await.unwrap();
    let (before, pid, ip) = (snapshot(&suite).await, host_pid(&service).await, pod.ip().await.unwrap());

    service.kill();
    service.spawn().await;
    let suite = service.suite().await;
    ready(&suite).await;
    assert_eq!(snapshot(&suite).await, before);
    assert_eq!(host_pid(&service).await, pid, "another host");
    let sandbox = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let sandbox = suite.runtime.clone().pod_sandbox_status(sandbox).await.unwrap().into_inner();
    assert_eq!(sandbox.status.unwrap().network.unwrap().ip, ip);
    assert!(sandbox.info["info"].contains("survivor"));

    // The pod range that the node brings is used from then on, also by the next service.
    let moved = ip.rsplit_once('.').unwrap().0.to_owned();
    let network = Some(v1::NetworkConfig { pod_cidr: format!("{moved}.128/25") });
    let config = Some(v1::RuntimeConfig { network_config: network });
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: config };
    suite.runtime.clone().update_runtime_config(request).await.unwrap();
    let nonsense = Some(v1::NetworkConfig { pod_cidr: "nonsense".into() });
    let config = Some(v1::RuntimeConfig { network_config: nonsense });
    let request = v1::UpdateRuntimeConfigRequest { runtime_config: config };
    assert!(suite.runtime.clone().update_runtime_config(request).await.is_err());
    service.kill();
    service.spawn().await;
    let suite = service.suite().await;
    let elsewhere = suite.pod("elsewhere").await.unwrap();
    assert_eq!(elsewhere.ip().await.unwrap(), format!("{moved}.130"));

    // It goes on as if nothing had been: the created one starts, the running one stops, a new address is another.
    let start = v1::StartContainerRequest { container_id: created.clone() };
    suite.runtime.clone().start_container(start).await.unwrap();
    assert_eq!(suite.exited(&created).await.unwrap().exit_code, 1);
    let other = suite.pod("newcomer").await.unwrap();
    assert_ne!(other.ip().await.unwrap(), ip);
    let stop = v1::StopContainerRequest { container_id: runs.clone(), timeout: 0 };
    suite.runtime.clone().stop_container(stop).await.unwrap();
    assert_eq!(suite.status(&runs).await.unwrap().state(), v1::ContainerState::ContainerExited);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ends_while_the_service_is_away_is_learned() {
    let mut service = Service::start().await;
    let suite = service.suite().await;
    let programs = suite.target.programs.clone();
    let pod = suite.pod("away").await.unwrap();
    let runs = pod.create("runs", &programs.sleeps).await.unwrap();
    pod.start(&runs).await.unwrap();
    service.kill();
    let host = HostClient::connect(&coracle_cri::host::socket(&service.state_dir())).await.unwrap();
    host.stop_container(&runs, 0).await.unwrap();
    service.spawn().await;
    let suite = service.suite().await;
    let status = suite.exited(&runs).await.unwrap();
    assert!(status.finished_at > status.started_at && status.started_at > 0, "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_takes_its_containers_but_not_its_pods() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let programs = suite.target.programs.clone();
    let pod = suite.pod("orphan").await.unwrap();
    let runs = pod.create("runs", &programs.sleeps).await.unwrap();
    pod.start(&runs).await.unwrap();
    let (pid, ip) = (host_pid(&service).await, pod.ip().await.unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();

    let status = suite.exited(&runs).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
    ready(&suite).await;
    assert_ne!(host_pid(&service).await, pid);
    assert_eq!(pod.ip().await.unwrap(), ip, "the pod keeps its address");
    let image = suite.pull(&programs.sleeps.image).await.unwrap();
    let mut again = pod.container_config("runs", &programs.sleeps, &image);
    again.metadata = Some(v1::ContainerMetadata { name: "runs".into(), attempt: 1 });
    let again = pod.create_as(again).await.unwrap();
    pod.start(&again).await.unwrap();
    assert_eq!(suite.status(&again).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_folder_has_one_service() {
    let service = Service::start().await;
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_coracle-runtime"))
        .args(["serve", "--socket"])
        .arg(service.dir.path().join("other.sock"))
        .arg("--state-dir")
        .arg(service.state_dir())
        .output()
        .unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("in use by another runtime"), "{said}");
}

/// A node gives up many calls at once where pods end while they start: the others on its connection are answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_given_up_disturb_no_other() {
    let service = Service::start().await;
    ready(&service.suite().await).await;
    let endpoint = service.endpoint();
    let stream = tokio::net::UnixStream::connect(endpoint.trim_start_matches("unix://")).await.unwrap();
    let (sender, mut connection) = h2::client::handshake(stream).await.unwrap();
    // It hears how many calls a connection takes.
    let mut sender = tokio::select! {
        sender = sender.ready() => sender.unwrap(),
        ended = &mut connection => panic!("the connection ended: {ended:?}"),
    };
    let mut list = || {
        let request = http::Request::post("http://runtime/runtime.v1.RuntimeService/ListContainers")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        let (answer, mut body) = sender.send_request(request.unwrap(), false).unwrap();
        // A message that says nothing, in its frame.
        body.send_data(bytes::Bytes::from_static(&[0; 5]), true).unwrap();
        answer
    };
    let pid = service.pid();
    let signal = |signal| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
    };
    signal(nix::sys::signal::Signal::SIGSTOP);
    let stands = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    while !stands() {
        tokio::task::yield_now().await;
    }
    // While it stands still, the calls and the word that nobody waits for them any more gather in its socket.
    let given_up: Vec<_> = (0..90).map(|_| list()).collect();
    assert!(futures::poll!(&mut connection).is_pending());
    drop(given_up);
    assert!(futures::poll!(&mut connection).is_pending());
    signal(nix::sys::signal::Signal::SIGCONT);
    let answered = tokio::select! {
        answer = list() => answer.expect("an answer").status(),
        ended = &mut connection => panic!("the connection ended: {ended:?}"),
    };
    assert_eq!(answered, 200);
}
