//! Volumes whose data is shared, comes from objects, or outlives its pod.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Ended, eventually};
use serde_json::{Value, json};

use super::describe;
use crate::pods::{SOON, apply, cluster, has, status, steps};

fn with_volume(mut pod: Value, source: Value) -> Value {
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    let mut volume = source;
    volume["name"] = json!("v");
    pod["spec"]["volumes"] = json!([volume]);
    pod
}

fn unbound(mut pod: Value) -> Value {
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    pod
}

/// Row: storage: emptyDir and hostPath, claims on demand and by hand whose data outlives the pod, ConfigMap, Secret, NFS where the kernel has it
/// Profile: loopback
#[test]
fn mission_m20_data_is_where_it_was_asked_for_and_outlives_the_pod() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps"])?;
    let host = cluster.data_dir().with_file_name("of-the-host");
    let by_hand = cluster.data_dir().with_file_name("by-hand");
    for dir in [&host, &by_hand] {
        std::fs::create_dir(dir)?;
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    }
    std::fs::write(host.join("note"), "of the host")?;
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=color=blue"])?;
    cluster.kubectl(&["create", "secret", "generic", "login", "--from-literal=token=s3cret"])?;
    let claim = |name: &str, class: Option<&str>| {
        let mut spec =
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
        if let Some(class) = class {
            spec["storageClassName"] = json!(class);
        }
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
    };
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "by-hand"},
        "spec": {
            "capacity": {"storage": "1Mi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "hand",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": by_hand},
        },
    });
    let of_claim = |name: &str| json!({"persistentVolumeClaim": {"claimName": name}});
    let write = ["read /v/kept", "write /v/kept by the first"];
    apply(
        &cluster,
        &[
            claim("on-demand", None),
            claim("by-hand", Some("hand")),
            volume,
            with_volume(
                steps(&node, "empty", "Never", &["write /v/x y", "read /v/x"]),
                json!({"emptyDir": {}}),
            ),
            with_volume(
                steps(&node, "host", "Never", &["read /v/note", "write /v/back from the pod"]),
                json!({"hostPath": {"path": host, "type": "Directory"}}),
            ),
            with_volume(
                steps(&node, "config", "Never", &["read /v/color"]),
                json!({"configMap": {"name": "settings"}}),
            ),
            with_volume(
                steps(&node, "secret", "Never", &["read /v/token"]),
                json!({"secret": {"secretName": "login"}}),
            ),
            unbound(with_volume(steps(&node, "first", "Never", &write), of_claim("on-demand"))),
            unbound(with_volume(steps(&node, "first-hand", "Never", &write), of_claim("by-hand"))),
        ],
    )?;
    let ends = |pod: &str, words: &[&str]| -> Result<()> {
        status(&cluster, pod, "succeeds", |s| s["phase"] == "Succeeded")
            .with_context(|| describe(&cluster, "pod", pod))?;
        has(&cluster.kubectl(&["logs", pod])?, words)
    };
    ends("empty", &["/v/x: y"])?;
    ends("host", &["/v/note: of the host", "/v/back: written"])?;
    ensure!(std::fs::read_to_string(host.join("back"))? == "from the pod");
    ends("config", &["/v/color: blue"])?;
    ends("secret", &["/v/token: s3cret"])?;
    for (first, second, claim) in [("first", "second", "on-demand"), ("first-hand", "second-hand", "by-hand")]
    {
        ends(first, &["/v/kept: error NotFound", "/v/kept: written"])?;
        cluster.kubectl(&["delete", "pod", first])?;
        apply(
            &cluster,
            &[unbound(with_volume(steps(&node, second, "Never", &["read /v/kept"]), of_claim(claim)))],
        )?;
        ends(second, &["/v/kept: by the first"])?;
    }
    released(&cluster)?;
    nfs(&cluster, &node)?;
    cluster.stop()
}

/// A volume made on demand goes with its claim, and its data with it; one made by hand is kept.
fn released(cluster: &coracle_e2e::Cluster) -> Result<()> {
    let volume = cluster.get(&["pvc", "on-demand"])?["spec"]["volumeName"].take();
    let volume = volume.as_str().context("volumeName")?;
    let path = cluster.get(&["pv", volume])?["spec"]["local"]["path"].take();
    let path = std::path::PathBuf::from(path.as_str().context("local.path")?);
    ensure!(path.join("kept").is_file(), "{}", path.display());
    cluster.kubectl(&["delete", "pod", "second", "second-hand"])?;
    cluster.kubectl(&["delete", "pvc", "on-demand", "by-hand"])?;
    eventually("the volume and its data are gone", SOON, || {
        Ok(!path.exists() && cluster.kubectl_fails(&["get", "pv", volume])?.contains("not found"))
    })?;
    let kept = cluster.get(&["pv", "by-hand"])?;
    ensure!(kept["status"]["phase"] == "Released", "{kept:#}");
    Ok(())
}

/// Where the kernel has no NFS client the pod waits and says so; where it has one, no server answers on this port and the
/// pod says that. (This test has no NFS server to mount from.)
fn nfs(cluster: &coracle_e2e::Cluster, node: &str) -> Result<()> {
    let share = json!({"nfs": {"server": "127.0.0.1", "path": "/share"}});
    apply(cluster, &[with_volume(steps(node, "share", "Never", &["read /v/x"]), share)])?;
    let known = std::fs::read_to_string("/proc/filesystems")?.lines().any(|l| l.trim_end().ends_with("nfs4"));
    let words = if known { "mount NFS 127.0.0.1:/share" } else { "this kernel has no NFS client (nfs4)" };
    if !known {
        eprintln!("this kernel has no NFS: what is checked is the error");
    }
    eventually("the pod says why it waits", SOON, || Ok(describe(cluster, "pod", "share").contains(words)))?;
    ensure!(cluster.get(&["pod", "share"])?["status"]["phase"] == "Pending");
    Ok(())
}
