//! What Linux pods may use, and what they do.

use std::path::Path;

use coracle_cri::conformance::{Program, Suite};
use coracle_cri_api::{annotation, v1};
use tonic::Code;

use crate::linux::{programs, shell};
use crate::service::Service;

fn resources(shares: i64, memory: i64) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources { cpu_shares: shares, memory_limit_in_bytes: memory, ..Default::default() }
}

/// A pod's weight and its limit of memory.
fn group(pod: &str) -> (String, String) {
    let root = Path::new("/sys/fs/cgroup");
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default().trim().to_owned();
    if root.join("cgroup.controllers").exists() {
        return (read(&format!("coracle/{pod}/cpu.weight")), read(&format!("coracle/{pod}/memory.max")));
    }
    (
        read(&format!("cpu/coracle/{pod}/cpu.shares")),
        read(&format!("memory/coracle/{pod}/memory.limit_in_bytes")),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_weigh_and_are_limited_as_their_sandboxes_say() {
    let mut service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    let mut config = suite.pod_config("weighed");
    config.linux.get_or_insert_default().resources = Some(resources(2048, 64 << 20));
    let pod = suite.run(config).await.unwrap();
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let weight = |shares: &str, weight: &str| if unified { weight.to_owned() } else { shares.to_owned() };
    assert_eq!(group(&pod.id), (weight("2048", "174"), "67108864".to_owned()));

    let update = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(resources(1024, 32 << 20)),
        overhead: None,
    };
    suite.runtime.clone().update_pod_sandbox_resources(update.clone()).await.unwrap();
    assert_eq!(group(&pod.id), (weight("1024", "100"), "33554432".to_owned()));
    // It is remembered.
    service.kill();
    service.spawn().await;
    let suite = service.suite_of(programs()).await;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let info = suite.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner().info;
    assert!(info.values().any(|text| text.contains("33554432")), "{info:?}");

    let mut wasm = suite.pod_config("wasm-only");
    wasm.annotations.insert(annotation::LINUX_CONTAINERS.into(), "false".into());
    let wasm = suite.run(wasm).await.unwrap();
    for (id, code) in [(wasm.id.clone(), Code::Unimplemented), ("absent".to_owned(), Code::NotFound)] {
        let update = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: id, ..update.clone() };
        let refused = suite.runtime.clone().update_pod_sandbox_resources(update).await.unwrap_err();
        assert_eq!(refused.code(), code);
    }
    wasm.end().await.unwrap();
}

async fn stats(suite: &Suite, pod: &str) -> v1::LinuxPodSandboxStats {
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.to_owned() };
    suite.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap().linux.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_linux_containers_write_and_their_processes_are_counted() {
    let service = Service::start_routed(None).await;
    let suite = service.suite_of(programs()).await;
    let pod = suite.pod("counted").await.unwrap();
    let script =
        "busybox dd if=/dev/zero of=/file bs=1M count=3; sleep 100000 & sleep 100000 & : > /done; wait";
    let linux: Program = shell(script);
    let id = pod.create("linux", &linux).await.unwrap();
    pod.start(&id).await.unwrap();
    let done = service.state_dir().join("oci/containers").join(&id).join("upper/done");
    for _ in 0..1000 {
        if done.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let found = stats(&suite, &pod.id).await;
    let written = found.containers[0].writable_layer.clone().expect("what it has written");
    let (bytes, files) = (written.used_bytes.unwrap().value, written.inodes_used.unwrap().value);
    assert!((3 << 20..4 << 20).contains(&bytes) && (3..20).contains(&files), "{bytes} bytes, {files} files");
    assert!(written.fs_id.unwrap().mountpoint.contains(&id));
    assert_eq!(found.process.unwrap().process_count.unwrap().value, 3);
    let request = v1::ListContainerStatsRequest { filter: None };
    let all = suite.runtime.clone().list_container_stats(request).await.unwrap().into_inner().stats;
    assert_eq!(all[0].writable_layer.clone().unwrap().used_bytes.unwrap().value, bytes);
    pod.end().await.unwrap();
}
