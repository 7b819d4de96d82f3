//! Nothing is left of pods that are gone: counted from outside, in what the kernel says of the processes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_cri::conformance::{Pod, Program, Suite};
use coracle_wasm::client::HostClient;

use crate::service::Service;

/// What the kernel and the folder show, by kind.
type Counts = BTreeMap<&'static str, usize>;

/// Mappings that allocators keep for the next one.
const MAPPINGS_KEPT: usize = 200;

fn entries(path: impl AsRef<Path>) -> usize {
    std::fs::read_dir(path).map_or(0, |entries| entries.count())
}

/// Files and folders below a folder; what is kept for good is passed over.
fn files(path: &Path) -> usize {
    let passed = ["images", "compiled"];
    let children = std::fs::read_dir(path).into_iter().flatten().flatten();
    children
        .filter(|e| !passed.iter().any(|p| e.file_name() == *p))
        .map(|e| 1 + if e.file_type().is_ok_and(|t| t.is_dir()) { files(&e.path()) } else { 0 })
        .sum()
}

fn lines(path: impl AsRef<Path>, with: &str) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().filter(|l| l.contains(with)).count())
}

/// Processes that have this folder in their command line.
fn processes(folder: &str) -> usize {
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path());
    let ours = |path: &PathBuf| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(folder)
    };
    ids.filter(ours).count()
}

async fn count(service: &Service) -> Counts {
    let state = service.state_dir().canonicalize().unwrap();
    let folder = state.display().to_string();
    let socket = coracle_cri::host::socket(&state);
    let host = HostClient::connect(&socket).await.unwrap().inspect().await.unwrap().pid;
    let runtime = service.pid();
    [
        ("descriptors of the service", entries(format!("/proc/{runtime}/fd"))),
        ("descriptors of the host", entries(format!("/proc/{host}/fd"))),
        ("mappings of the host", lines(format!("/proc/{host}/maps"), "")),
        ("mounts", lines("/proc/self/mounts", &folder)),
        ("processes", processes(&folder)),
        ("files", files(&state)),
    ]
    .into()
}

/// Waits until the counts are what they were, or says which are not.
async fn settles(service: &Service, before: &Counts) {
    let mut more = Vec::new();
    for _ in 0..300 {
        let now = count(service).await;
        let allowed = |kind: &str| if kind.starts_with("mappings") { MAPPINGS_KEPT } else { 0 };
        let grown = |(kind, n): &(&&'static str, &usize)| **n > before[**kind] + allowed(kind);
        more = now.iter().filter(grown).map(|(k, n)| (*k, before[k], *n)).collect();
        if more.is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("(kind, before, now): {more:?}");
}

/// A pod that runs one program to its end and leaves another running, and goes.
async fn comes_and_goes(suite: &Suite, name: &str, handler: &str) {
    let pod: Pod<'_> = suite.run_as(suite.pod_config(name), handler).await.unwrap();
    let programs = &suite.target.programs;
    let fails = pod.create("fails", &programs.speaks_and_fails).await.unwrap();
    pod.start(&fails).await.unwrap();
    suite.exited(&fails).await.unwrap();
    let sleeps = pod.create("sleeps", &programs.sleeps).await.unwrap();
    pod.start(&sleeps).await.unwrap();
    pod.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_leave_nothing_behind() {
    let service = Service::start().await;
    let suite = service.suite().await;
    let all = async |round: &str, count: usize| {
        let pods = (0..count).map(async |n| {
            let handler = if n % 10 == 0 { "wasm-isolated" } else { "wasm" };
            comes_and_goes(&suite, &format!("{round}-{n}"), handler).await;
        });
        futures::future::join_all(pods).await;
    };
    // Pools and caches are filled first.
    all("warm", 10).await;
    let before = count(&service).await;
    all("counted", 50).await;
    settles(&service, &before).await;
}

/// Profile `routed`; needs root.
#[tokio::test(flavor = "multi_thread")]
async fn linux_pods_leave_nothing_behind() {
    let service = Service::start_routed(None).await;
    let shell = |script: &str| Program {
        image: "busybox:v1".into(),
        command: vec!["/bin/sh".into(), "-c".into(), script.into()],
    };
    let mut programs = service.suite().await.target.programs;
    programs.speaks_and_fails = shell("echo out; exit 1");
    programs.sleeps = shell("exec sleep 100000");
    let suite = service.suite_of(programs).await;
    let links = || service.in_namespace(&["ip", "-o", "link"]).lines().count();
    comes_and_goes(&suite, "warm", "runc").await;
    let (before, cables) = (count(&service).await, links());
    for n in 0..3 {
        comes_and_goes(&suite, &format!("counted-{n}"), "runc").await;
    }
    settles(&service, &before).await;
    assert_eq!(links(), cables, "cables to pods");
}
