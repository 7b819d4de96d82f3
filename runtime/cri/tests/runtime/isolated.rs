//! Handler `wasm-isolated`: a host process for the pod, which comes, lives on and goes with it.

use std::path::PathBuf;
use std::time::Duration;

use coracle_cri::conformance::{Pod, Suite};
use coracle_cri_api::v1;
use coracle_wasm::client::HostClient;

use crate::service::Service;

async fn isolated<'a>(suite: &'a Suite, name: &str) -> Pod<'a> {
    let config = suite.pod_config(name);
    suite.run_as(config, "wasm-isolated").await.unwrap()
}

/// The process of an isolated pod.
async fn host_pid(service: &Service, pod: &Pod<'_>) -> i32 {
    let folder = coracle_cri::isolated::folder(&service.state_dir(), &pod.id);
    for _ in 0..500 {
        if let Ok(client) = HostClient::connect(&coracle_cri::host::socket(&folder)).await
            && let Ok(info) = client.inspect().await
        {
            return info.pid.cast_signed();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the host of {} does not answer", pod.id);
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// The value of a line of `/proc/<pid>/status`.
fn status_of(pid: i32, key: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(key)).unwrap_or_else(|| panic!("{key} in {text}"));
    line.trim_start_matches(':').trim().to_owned()
}

/// Whether a process is there, and no zombie that waits for its parent.
fn state(pid: i32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("State:")?.trim().chars().next())
}

fn lives(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

fn stopped(pid: i32) -> bool {
    state(pid) == Some('T')
}

async fn running<'a>(pod: &Pod<'a>, suite: &Suite) -> String {
    let id = pod.create("runs", &suite.target.programs.sleeps).await.unwrap();
    pod.start(&id).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_pod_has_a_confined_process_that_ends_with_it() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let (one, two) = (isolated(&suite, "one").await, isolated(&suite, "two").await);
    let (first, second) = (host_pid(&service, &one).await, host_pid(&service, &two).await);
    assert_ne!(first, second);
    for pid in [first, second] {
        assert_eq!(status_of(pid, "Seccomp"), "2", "a filter of system calls");
        assert_eq!(status_of(pid, "NoNewPrivs"), "1");
    }
    let fails = one.create("fails", &suite.target.programs.speaks_and_fails).await.unwrap();
    one.start(&fails).await.unwrap();
    let said = suite.exited(&fails).await.unwrap();
    assert_eq!(said.exit_code, 1);
    assert_eq!(suite.log(&said.log_path, 2).await.unwrap().len(), 2);
    let id = running(&one, &suite).await;
    let stats = v1::ContainerStatsRequest { container_id: id };
    let stats = suite.runtime.clone().container_stats(stats).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);

    one.end().await.unwrap();
    assert!(!lives(first), "its process is gone");
    assert!(!coracle_cri::isolated::folder(&service.state_dir(), &one.id).exists(), "and so are its files");
    assert!(lives(second));
    two.end().await.unwrap();
    assert_eq!(coracle_cri::isolated::folders(&service.state_dir()), Vec::<PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn isolated_hosts_are_adopted_and_one_that_dies_takes_only_its_own_pod() {
    let mut service = Service::start().await;
    let suite = service.suite().await;
    let (victim, other, shared) = (
        isolated(&suite, "victim").await,
        isolated(&suite, "other").await,
        suite.pod("shared").await.unwrap(),
    );
    let ids = [running(&victim, &suite).await, running(&other, &suite).await, running(&shared, &suite).await];
    let before = [host_pid(&service, &victim).await, host_pid(&service, &other).await];
    let ip = victim.ip().await.unwrap();

    service.kill();
    service.spawn().await;
    let suite = service.suite().await;
    assert_eq!([host_pid(&service, &victim).await, host_pid(&service, &other).await], before, "adopted");
    for id in &ids {
        assert_eq!(suite.status(id).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    }

    kill(before[0]);
    let ended = suite.exited(&ids[0]).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"), "{ended:?}");
    for id in &ids[1..] {
        assert_eq!(suite.status(id).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    }
    assert_ne!(host_pid(&service, &victim).await, before[0], "another host took its place");
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: victim.id.clone(), verbose: false };
    let status =
        suite.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.network.unwrap().ip, ip, "the pod keeps its address");

    // A host that does not answer any more is ended all the same.
    let stuck = host_pid(&service, &other).await;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(stuck), nix::sys::signal::Signal::SIGSTOP).unwrap();
    while lives(stuck) && !stopped(stuck) {
        tokio::task::yield_now().await;
    }
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: other.id.clone() };
    suite.runtime.clone().stop_pod_sandbox(stop).await.unwrap();
    assert_eq!(suite.exited(&ids[1]).await.unwrap().exit_code, 137);
    assert!(!lives(stuck));
}

/// Needs root and control groups.
#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_host_is_in_a_control_group_of_its_own() {
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let service = Service::start().await;
    let suite = service.suite().await;
    let mut config = suite.pod_config("grouped");
    let resources = v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    config.linux = Some(v1::LinuxPodSandboxConfig { resources: Some(resources), ..Default::default() });
    let pod = suite.run_as(config, "wasm-isolated").await.unwrap();
    let pid = host_pid(&service, &pod).await;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let own = format!("/coracle-isolated/{}", &pod.id[..12]);
    let unified = PathBuf::from("/sys/fs/cgroup/cgroup.controllers").exists();
    let (groups, memory, limit) = match unified {
        true => (1, format!("/sys/fs/cgroup{own}"), "memory.max"),
        false => (3, format!("/sys/fs/cgroup/memory{own}"), "memory.limit_in_bytes"),
    };
    assert_eq!(text.lines().filter(|l| l.ends_with(&own)).count(), groups, "{text}");
    let limit = PathBuf::from(&memory).join(limit);
    let bytes = || std::fs::read_to_string(&limit).unwrap().trim().parse::<u64>().unwrap();
    assert_eq!(bytes(), (64 + 256) << 20);
    // A container that is given more than the pod had has it from the kernel too.
    let id = running(&pod, &suite).await;
    let linux = v1::LinuxContainerResources { memory_limit_in_bytes: 600 << 20, ..Default::default() };
    let update = v1::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(linux),
        ..Default::default()
    };
    suite.runtime.clone().update_container_resources(update).await.unwrap();
    assert_eq!(bytes(), (600 + 256) << 20);
    pod.end().await.unwrap();
    assert!(!PathBuf::from(memory).exists(), "the group goes with the pod");
}

/// How many further hosts live.
fn further(service: &Service) -> Vec<PathBuf> {
    let folders = coracle_cri::isolated::folders(&service.state_dir());
    folders.into_iter().filter(|folder| coracle_cri::host::lives(folder)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_is_started_where_one_has_many_mappings() {
    // Every process has more than one: so each pod gets a host of its own.
    let mut service = Service::start_with(&["--host-mappings", "1"]).await;
    let suite = service.suite().await;
    let (one, two) = (suite.pod("one").await.unwrap(), suite.pod("two").await.unwrap());
    let (first, second) = (running(&one, &suite).await, running(&two, &suite).await);
    assert_eq!(further(&service).len(), 2);
    for (pod, id) in [(&one, &first), (&two, &second)] {
        let stats = v1::ContainerStatsRequest { container_id: id.clone() };
        let stats = suite.runtime.clone().container_stats(stats).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.memory.is_some(), "{} is not measured: {stats:?}", pod.id);
    }
    // They outlive the service, and the next one knows whose they are.
    service.kill();
    service.spawn().await;
    let suite = service.suite().await;
    for id in [&first, &second] {
        assert_eq!(suite.status(id).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    }
    let stop = v1::StopContainerRequest { container_id: first.clone(), timeout: 0 };
    suite.runtime.clone().stop_container(stop).await.unwrap();
    assert_eq!(suite.status(&first).await.unwrap().state(), v1::ContainerState::ContainerExited);
    for pod in [&one.id, &two.id] {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: pod.clone() };
        suite.runtime.clone().stop_pod_sandbox(request).await.unwrap();
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
        suite.runtime.clone().remove_pod_sandbox(request).await.unwrap();
    }
    assert!(coracle_cri::isolated::folders(&service.state_dir()).is_empty(), "a host is left");

    // With the usual threshold one host is enough for all.
    drop(service);
    let service = Service::start().await;
    let suite = service.suite().await;
    let pods = [suite.pod("one").await.unwrap(), suite.pod("two").await.unwrap()];
    assert!(further(&service).is_empty());
    for pod in pods {
        pod.end().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_host_is_started_where_one_has_many_open_files() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let one = suite.pod("one").await.unwrap();
    assert!(further(&service).is_empty());
    let host = HostClient::connect(&coracle_cri::host::socket(&service.state_dir())).await.unwrap();
    let host = host.inspect().await.unwrap().pid;
    let open = std::fs::read_dir(format!("/proc/{host}/fd")).unwrap().count() as u64;
    // It has opened more than three quarters of what it may.
    let limits = std::process::Command::new("prlimit")
        .args(["--pid", &host.to_string(), &format!("--nofile={}:", open + open / 8)])
        .status();
    assert!(limits.unwrap().success());
    // What is known of it counts for a while, in which it gets pods.
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    let two = loop {
        let next = suite.pod("two").await.unwrap();
        if !further(&service).is_empty() {
            break next;
        }
        assert!(std::time::Instant::now() < deadline, "all pods are in one host");
        next.end().await.unwrap();
    };
    let id = running(&two, &suite).await;
    assert_eq!(further(&service).len(), 1);
    assert_eq!(suite.status(&id).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    for pod in [one, two] {
        pod.end().await.unwrap();
    }
}
