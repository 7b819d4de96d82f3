//! Volumes that wasm containers cannot have: devices and huge pages. Profile: routed.

use anyhow::{Result, ensure};
use coracle_e2e::{Ended, eventually};
use serde_json::{Value, json};

use super::super::agent::csi::{DRIVER, register};
use super::{SOON, apply, cluster, pod, ready, says};

/// A volume by hand and its claim, of a source of a PersistentVolume.
fn device(name: &str, mut source: Value) -> [Value; 2] {
    source["capacity"] = json!({"storage": "1Mi"});
    source["accessModes"] = json!(["ReadWriteOnce"]);
    source["storageClassName"] = json!("hand");
    source["volumeMode"] = json!("Block");
    let claim = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "hand", "volumeName": name,
        "volumeMode": "Block", "resources": {"requests": {"storage": "1Mi"}}});
    [
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": source}),
        json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": claim}),
    ]
}

/// A pod of one container that uses a claim as a device.
fn user(name: &str, claim: &str, mut container: Value) -> Value {
    container["name"] = json!("c");
    container["volumeDevices"] = json!([{"name": "v", "devicePath": "/dev/own"}]);
    let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": claim}});
    pod(name, json!({"terminationGracePeriodSeconds": 1, "containers": [container], "volumes": [volume]}))
}

/// Row: Linux containers: block volumes, local and of a CSI driver, are devices; emptyDir volumes of huge pages are mounted
#[test]
fn linux_containers_have_devices_and_huge_pages() -> Result<Ended> {
    let mut cluster = cluster()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let fake = register(&cluster, &runtime)?;
    let node = cluster.data_dir().with_file_name("disk");
    coracle_e2e::succeed(std::process::Command::new("mknod").arg(&node).args(["b", "7", "200"]))?;
    let here = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]}]}});
    let script = "[ -b /dev/own ] && ls -l /dev/own; exec sleep 100000";
    let linux = json!({"image": "busybox:v1", "command": ["/bin/sh", "-c", script]});
    let wasm = json!({"image": "web:v1", "ports": [{"containerPort": 8080}]});
    let mut mounts = user("mounts", "disk", linux.clone());
    mounts["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    mounts["spec"]["containers"][0]["volumeDevices"] = Value::Null;
    let mut objects = vec![
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": {"attachRequired": false}}),
        user("local", "disk", linux.clone()),
        user("driven", "driven", linux),
        user("wasm", "disk", wasm),
        mounts,
    ];
    objects.extend(device("disk", json!({"local": {"path": node}, "nodeAffinity": here})));
    objects.extend(device("driven", json!({"csi": {"driver": DRIVER, "volumeHandle": "vol-2"}})));

    // Whether there are any pages does not matter to who only mounts them: the scheduler is not asked.
    let huge = |name: &str, resources: Value| {
        let script = "grep ' /huge hugetlbfs ' /proc/mounts && echo mounted; exec sleep 100000";
        let container = json!({"name": "c", "image": "busybox:v1", "command": ["/bin/sh", "-c", script],
            "volumeMounts": [{"name": "v", "mountPath": "/huge"}], "resources": resources});
        let volume = json!({"name": "v", "emptyDir": {"medium": "HugePages-2Mi"}});
        pod(
            name,
            json!({"terminationGracePeriodSeconds": 1, "nodeName": "node-1", "containers": [container], "volumes": [volume]}),
        )
    };
    objects.push(huge("huge", json!({"limits": {"hugepages-2Mi": "2Mi", "memory": "64Mi", "cpu": "100m"}})));
    objects.push(huge("unasked", json!({})));
    apply(&cluster, &objects)?;

    ready(&cluster, "local")?;
    says(&cluster, "local", "c", "7, 200 ")?;
    ready(&cluster, "driven")?;
    says(&cluster, "driven", "c", "7, 201 ")?;
    ensure!(fake.count("stage vol-2") == 1, "{:?}", fake.calls());
    let describes = |name: &str, words: &str| {
        eventually(&format!("{name}: {words}"), SOON, || {
            let text = cluster.kubectl(&["describe", "pod", name])?;
            ensure!(text.contains(words), "{text}");
            Ok(true)
        })
    };
    describes("wasm", "volume device \"v\" at /dev/own: a wasm container has no devices")?;
    describes("mounts", "volume v has volumeMode Block, but is specified in volumeMounts")?;
    describes("unasked", "hugePages storage requested, but there is no resource request for huge pages.")?;
    if std::fs::read_to_string("/proc/filesystems")?.contains("hugetlbfs") {
        ready(&cluster, "huge")?;
        says(&cluster, "huge", "c", "mounted")?;
    } else {
        describes("huge", "this kernel has no huge pages (hugetlbfs)")?;
    }
    cluster.kubectl(&["delete", "pod", "--all", "--timeout=60s"])?;
    eventually("the driver has its volume back", SOON, || Ok(fake.count("unstage vol-2") == 1))?;
    cluster.stop()
}
