//! What Linux pods weigh, may write, are called and may set. Profile: routed.

use std::path::{Path, PathBuf};

use super::*;

/// The control group of a pod's container, in the hierarchy of processors.
fn group(cluster: &Cluster, pod: &str) -> Result<PathBuf> {
    let found = cluster.get(&["pod", pod])?;
    let id = found["status"]["containerStatuses"][0]["containerID"].as_str().context("no container")?;
    let id = id.rsplit('/').next().unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let all = if root.join("cgroup.controllers").exists() { root.to_owned() } else { root.join("cpu") };
    let pods = std::fs::read_dir(all.join("coracle"))?.flatten().map(|entry| entry.path());
    pods.map(|pod| pod.join(id)).find(|group| group.is_dir()).with_context(|| format!("no group of {id}"))
}

/// Its weight, in version 1's words.
fn shares(group: &Path) -> Result<String> {
    let (old, new) = (group.join("cpu.shares"), group.join("cpu.weight"));
    Ok(std::fs::read_to_string(if old.exists() { old } else { new })?.trim().to_owned())
}

fn says_shares(expected: u32, weight: u32) -> String {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if unified { weight } else { expected }.to_string()
}

/// Row: Linux containers: pods weigh what they request, and follow a resize in place; what they write to their root file system counts against limits.ephemeral-storage
#[test]
fn linux_pods_weigh_what_they_request_and_write_no_more_than_their_limit() -> Result<Ended> {
    let mut cluster = cluster()?;
    let container = |resources: Value, script: &str| json!({"name": "main", "image": "busybox:v1", "command": ["/bin/sh", "-c", script], "resources": resources});
    let sleeps = "exec sleep 100000";
    let alone = |container: Value| json!({"terminationGracePeriodSeconds": 1, "containers": [container]});
    let weighs =
        json!({"requests": {"cpu": "250m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}});
    let writes = "dd if=/dev/zero of=/file bs=1M count=8; exec sleep 100000";
    apply(
        &cluster,
        &[
            pod("weighs", alone(container(weighs, sleeps))),
            pod("light", alone(container(json!({}), sleeps))),
            pod("writes", alone(container(json!({"limits": {"ephemeral-storage": "2Mi"}}), writes))),
        ],
    )?;
    for name in ["weighs", "light"] {
        ready(&cluster, name)?;
    }
    let (own, light) = (group(&cluster, "weighs")?, group(&cluster, "light")?);
    let of_pod = |group: &Path| shares(group.parent().context("the pod's group")?);
    ensure!(of_pod(&own)? == says_shares(256, 35), "{}", of_pod(&own)?);
    ensure!(of_pod(&light)? == says_shares(2, 1), "{}", of_pod(&light)?);

    let patch =
        json!({"spec": {"containers": [{"name": "main", "resources": {"requests": {"cpu": "500m"}}}]}});
    cluster.kubectl(&["patch", "pod", "weighs", "--subresource=resize", "-p", &patch.to_string()])?;
    eventually("the pod weighs more", SOON, || {
        let expected = says_shares(512, 59);
        ensure!(of_pod(&own)? == expected && shares(&own)? == expected, "{}", of_pod(&own)?);
        Ok(true)
    })?;
    ensure!(group(&cluster, "weighs")? == own, "it was restarted");

    eventually("who writes too much is evicted", std::time::Duration::from_secs(60), || {
        let status = cluster.get(&["pod", "writes"])?["status"].clone();
        ensure!(status["phase"] == "Failed" && status["reason"] == "Evicted", "{status:#}");
        let words = "Container main exceeded its local ephemeral storage limit \"2Mi\". ";
        ensure!(status["message"] == words, "{status:#}");
        Ok(true)
    })?;
    cluster.kubectl(&["delete", "pod", "--all", "--now"])?;
    cluster.stop()
}

/// Row: Linux containers: whole names, names of the node's resolvers, and kernel parameters as the pod asks, those that are not safe by the operator's word alone
#[test]
fn linux_pods_are_called_ask_and_set_as_they_say() -> Result<Ended> {
    let mut cluster = cluster_with(&["--allowed-unsafe-sysctls=kernel.msg*"])?;
    let script = "hostname; grep \"$(hostname)\" /etc/hosts; cat /etc/resolv.conf; cat /proc/sys/kernel/msgmax; exec sleep 100000";
    let container = json!({"name": "main", "image": "busybox:v1", "command": ["/bin/sh", "-c", script]});
    let sysctls = |name: &str| json!({"sysctls": [{"name": name, "value": "12345"}]});
    let base = json!({"terminationGracePeriodSeconds": 1, "containers": [container]});
    let with = |more: Value| {
        let mut spec = base.clone();
        spec.as_object_mut().expect("a spec").extend(more.as_object().expect("fields").clone());
        spec
    };
    apply(
        &cluster,
        &[
            pod(
                "whole",
                with(
                    json!({"subdomain": "sub", "setHostnameAsFQDN": true, "securityContext": sysctls("kernel.msgmax"),
                "dnsPolicy": "Default", "dnsConfig": {"searches": ["my.example"]}}),
                ),
            ),
            pod("unsafe", with(json!({"securityContext": sysctls("net.core.somaxconn")}))),
        ],
    )?;
    ready(&cluster, "whole")?;
    let whole = "whole.sub.default.svc.cluster.local";
    says(&cluster, "whole", "main", "12345")?;
    let said = cluster.kubectl(&["logs", "whole"])?;
    ensure!(said.starts_with(&format!("{whole}\n")) && said.contains(&format!("\t{whole}\twhole")), "{said}");
    let own = std::fs::read_to_string("/etc/resolv.conf")?;
    let server = own.lines().find(|line| line.starts_with("nameserver"));
    let server = server.context("the machine has no nameserver")?;
    ensure!(said.contains(server) && said.contains("my.example"), "{said}");
    eventually("what is not safe is refused", SOON, || {
        let status = cluster.get(&["pod", "unsafe"])?["status"].clone();
        ensure!(status["reason"] == "SysctlForbidden", "{status:#}");
        ensure!(
            status["message"] == "Pod was rejected: forbidden sysctl: \"net.core.somaxconn\" not allowlisted",
            "{status:#}"
        );
        Ok(true)
    })?;
    cluster.kubectl(&["delete", "pod", "--all", "--now"])?;
    cluster.stop()
}
