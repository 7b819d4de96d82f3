//! What the containers of a pod have together.

use std::path::Path;

use coracle_cri_api::v1;

use crate::host::{Host, until};

fn id(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

/// A pod's config with these resources: shares, quota in microseconds of 100 ms, bytes.
fn config([shares, quota, memory]: [i64; 3]) -> v1::PodSandboxConfig {
    let resources = v1::LinuxContainerResources {
        cpu_shares: shares,
        cpu_quota: quota,
        cpu_period: if quota > 0 { 100_000 } else { 0 },
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    let linux = v1::LinuxPodSandboxConfig { resources: Some(resources), ..Default::default() };
    v1::PodSandboxConfig { linux: Some(linux), ..Default::default() }
}

/// The files of a pod's group: weight, quota, memory; in the words of the version that is here.
fn group(pod: &str) -> [String; 3] {
    let version_1 = ["cpu/{}/cpu.shares", "cpu/{}/cpu.cfs_quota_us", "memory/{}/memory.limit_in_bytes"];
    let version_2 = ["{}/cpu.weight", "{}/cpu.max", "{}/memory.max"];
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    (if unified { version_2 } else { version_1 }).map(|file| {
        let path = format!("/sys/fs/cgroup/{}", file.replace("{}", &format!("coracle/{pod}")));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| format!("{path}: {e}"));
        // Without a limit version 1 answers with the largest number of whole pages.
        let text = text.split_whitespace().next().unwrap_or_default().to_owned();
        if ["max", "9223372036854771712"].contains(&text.as_str()) { "-1".to_owned() } else { text }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_a_weight_and_limits_of_its_own() {
    let mut host = Host::new().await;
    let (heavy, light, plain) = (id("pod-heavy"), id("pod-light"), id("pod-plain"));
    host.make(&heavy, &config([2048, 0, 0]), [10, 9, 0, 2]).await;
    host.make(&light, &config([2, 50_000, 64 << 20]), [10, 9, 0, 3]).await;
    host.pod(&plain, [10, 9, 0, 4]).await;
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let weights = if unified { ["174", "1"] } else { ["2048", "2"] };
    assert_eq!(group(&heavy), [weights[0], "-1", "-1"]);
    assert_eq!(group(&light), [weights[1], "50000", "67108864"]);

    // A limit of the pod is one of its containers, which have none of their own.
    let c = id("greedy");
    host.create(&light, &c, &["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"], |_| ())
        .await
        .unwrap();
    host.engine.start(&c).await.unwrap();
    assert_eq!(host.end().await, (c.clone(), 137, "OOMKilled".into()));

    // It changes in place, also to none.
    host.engine.limit_pod(&light, &config([1024, 0, 0])).await.unwrap();
    assert_eq!(group(&light), [if unified { "100" } else { "1024" }, "-1", "-1"]);
    host.finish().await;
    let groups = Path::new("/sys/fs/cgroup").join(if unified { "coracle" } else { "memory/coracle" });
    until("its group is gone", || !groups.join(&light).exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_the_caller_made_is_the_callers() {
    let host = Host::new().await;
    let (pod, parent) = (id("pod-placed"), id("/coracle/placed"));
    let mut placed = config([2048, 0, 0]);
    placed.linux.as_mut().unwrap().cgroup_parent = parent.clone();
    host.make(&pod, &placed, [10, 9, 0, 2]).await;
    assert!(
        ["", "cpu"].iter().all(|c| !Path::new("/sys/fs/cgroup").join(c).join("coracle").join(&pod).exists())
    );
    host.finish().await;
}
