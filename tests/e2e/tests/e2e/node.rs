//! What the node does for pods: the mission's rows of kubelet, pods, init containers, resources, storage and devices.
//! Profile: loopback.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, eventually};
use serde_json::{Value, json};

use super::pods::{SOON, apply, cluster, has, ready, status, steps};

mod hooks;
mod linux;
mod storage;

fn describe(cluster: &Cluster, kind: &str, name: &str) -> String {
    cluster.kubectl(&["describe", kind, name]).unwrap_or_default()
}

fn says(cluster: &Cluster, pod: &str, words: &str) -> Result<()> {
    eventually(&format!("{pod} says {words:?}"), SOON, || {
        Ok(cluster.kubectl(&["logs", pod])?.contains(words))
    })
}

/// Row: node: registers, starts what is assigned, mounts volumes with Secrets, ConfigMaps and the account's token, reports
/// Profile: loopback
#[test]
fn mission_m05_the_node_agent_registers_starts_mounts_and_reports() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps"])?;
    let object = cluster.get(&["node", &node])?;
    let all = object["status"]["conditions"].as_array().context("conditions")?;
    ensure!(all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"), "{all:#?}");
    ensure!(object["status"]["capacity"]["cpu"].is_string(), "{object:#}");
    let lease = cluster.get(&["lease", "-n", "kube-node-lease", &node])?;
    ensure!(lease["spec"]["renewTime"].is_string(), "{lease:#}");

    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=color=blue"])?;
    cluster.kubectl(&["create", "secret", "generic", "login", "--from-literal=token=s3cret"])?;
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mut pod = steps(
        &node,
        "mounts",
        "Never",
        &[
            "read /config/color",
            "read /login/token",
            "env KUBERNETES_SERVICE_PORT",
            &format!("read {token}/namespace"),
            &format!("read {token}/token"),
            "write /dev/termination-log all was read",
        ],
    );
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "config", "mountPath": "/config"}, {"name": "login", "mountPath": "/login"}]);
    // That it may serve too takes nothing from its last words.
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080}]);
    pod["spec"]["volumes"] = json!([
        {"name": "config", "configMap": {"name": "settings"}}, {"name": "login", "secret": {"secretName": "login"}},
    ]);
    apply(&cluster, &[pod])?;
    let ended = status(&cluster, "mounts", "succeeds", |s| s["phase"] == "Succeeded")
        .with_context(|| describe(&cluster, "pod", "mounts"))?;
    let main = &ended["containerStatuses"][0]["state"]["terminated"];
    ensure!(main["message"] == "all was read" && main["exitCode"] == 0, "{main:#}");
    let said = cluster.kubectl(&["logs", "mounts"])?;
    has(&said, &["/config/color: blue", "/login/token: s3cret", "KUBERNETES_SERVICE_PORT=443"])?;
    // The token of the pod's own account, bound to the pod.
    has(&said, &[&format!("{token}/namespace: default"), &format!("{token}/token: eyJ")])?;
    cluster.stop()
}

/// Row: pods: containers of a pod share address and volumes; sidecars, hooks, deadlines; every pod has an address of its own
/// Profile: loopback
#[test]
fn mission_m07_pods_share_what_pods_share_and_live_as_told() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps", "switch", "probe"])?;
    apply(&cluster, &[together(&node), hooked(&node), limited(&node), sized(&node)])?;
    // Three programs are compiled first.
    cluster
        .kubectl(&["wait", "--for=jsonpath={.status.phase}=Running", "pod/together", "--timeout=90s"])
        .with_context(|| describe(&cluster, "pod", "together"))?;
    let shared = cluster.get(&["pod", "together"])?["status"].take();
    ensure!(shared["initContainerStatuses"][0]["state"]["running"].is_object(), "the sidecar: {shared:#}");
    eventually("the second reads what the first wrote", SOON, || {
        Ok(cluster.kubectl(&["logs", "together", "-c", "reads"])?.contains("/shared/note: from the first"))
    })?;
    // 127.0.0.1 is the pod's own: the first one's server answers the other there.
    eventually("the second reaches the first at the pod's loopback", SOON, || {
        Ok(cluster.kubectl(&["logs", "together", "-c", "calls"])?.contains("connected"))
    })?;

    let dead = status(&cluster, "limited", "is over its deadline", |s| s["phase"] == "Failed")?;
    ensure!(dead["reason"] == "DeadlineExceeded", "{dead:#}");
    let big = status(&cluster, "sized", "is evicted", |s| s["phase"] == "Failed")?;
    ensure!(
        big["reason"] == "Evicted" && big["message"].to_string().contains("exceeds the limit"),
        "{big:#}"
    );

    status(&cluster, "hooked", "is ready", ready).with_context(|| describe(&cluster, "pod", "hooked"))?;
    let ips: Vec<Value> = ["together", "hooked"]
        .iter()
        .map(|pod| Ok(cluster.get(&["pod", pod])?["status"]["podIP"].take()))
        .collect::<Result<_>>()?;
    ensure!(ips.first() != ips.last() && ips.iter().all(Value::is_string), "{ips:?}");
    let url = format!("http://{}:8080/is/started", ips[1].as_str().context("podIP")?);
    cluster.curl(&url).context("the postStart hook was not called")?;
    // The hook that ends it takes two seconds.
    let began = Instant::now();
    cluster.kubectl(&["delete", "pod", "hooked"])?;
    ensure!(began.elapsed() >= Duration::from_secs(2), "it did not wait for its hook: {:?}", began.elapsed());
    cluster.stop()
}

/// Containers that share a volume and the pod's loopback, with a sidecar.
fn together(node: &str) -> Value {
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "together"},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "initContainers": [{
                "name": "helper", "image": "steps:v1", "restartPolicy": "Always", "args": ["print helping", "sleep 600000"],
            }],
            "containers": [
                {"name": "writes", "image": "steps:v1", "volumeMounts": mount,
                 "args": ["write /shared/note from the first", "sleep 600000"]},
                {"name": "reads", "image": "steps:v1", "volumeMounts": mount,
                 "args": ["await /shared/note", "read /shared/note", "sleep 600000"]},
                {"name": "serves", "image": "probe:v1", "args": ["listen", "127.0.0.1:7000"]},
                {"name": "calls", "image": "probe:v1", "args": ["connect", "127.0.0.1:7000"]},
            ],
            "volumes": [{"name": "shared", "emptyDir": {}}],
        },
    })
}

/// A server that its hooks talk to.
fn hooked(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hooked"},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 10,
            "containers": [{
                "name": "web", "image": "switch:v1", "ports": [{"name": "web", "containerPort": 8080}],
                "lifecycle": {
                    "postStart": {"httpGet": {"path": "/on/started", "port": "web"}},
                    "preStop": {"sleep": {"seconds": 2}},
                },
                "volumeMounts": [{"name": "state", "mountPath": "/state"}],
            }],
            "volumes": [{"name": "state", "emptyDir": {}}],
        },
    })
}

fn limited(node: &str) -> Value {
    let mut pod = steps(node, "limited", "Always", &["sleep 600000"]);
    pod["spec"]["activeDeadlineSeconds"] = json!(2);
    pod
}

/// Writes more than its volume may hold.
fn sized(node: &str) -> Value {
    let text = format!("write /v/big {}", "x".repeat(20_000));
    let mut pod = steps(node, "sized", "Never", &[&text, "sleep 600000"]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"sizeLimit": "8Ki"}}]);
    pod
}

/// Row: pods: an init container that waits for a Service holds the app back until it exists
/// Profile: loopback
#[test]
fn mission_m08_the_app_starts_when_its_service_exists() -> Result<Ended> {
    let (mut cluster, _) = cluster(&["switch"])?;
    cluster.push("busybox", "busybox:latest")?;
    cluster.push("switch", "myapp:latest")?;
    let file = cluster.file("02-init-pod.yaml", include_str!("node/02-init-pod.yaml"))?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let waits = |s: &Value| s["initContainerStatuses"][0]["state"]["running"].is_object();
    status(&cluster, "init-pod", "waits", waits).with_context(|| describe(&cluster, "pod", "init-pod"))?;
    eventually("it says what it waits for", SOON, || {
        let said = cluster.kubectl(&["logs", "init-pod", "-c", "init-myservice"])?;
        Ok(said.contains("waiting for myservice"))
    })?;
    has(&cluster.kubectl(&["get", "pod", "init-pod"])?, &["0/1", "Init:0/1"])?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "myservice"}, "spec": {"ports": [{"port": 80}]},
    });
    apply(&cluster, &[service])?;
    status(&cluster, "init-pod", "runs", |s| s["phase"] == "Running" && ready(s))?;
    let said = cluster.kubectl(&["logs", "init-pod", "-c", "init-myservice"])?;
    has(&said, &["Name: myservice"])?;
    cluster.stop()
}

/// Row: pods: requests are scheduled and limits are enforced: memory ends a container, CPU slows it down
/// Profile: loopback
#[test]
fn mission_m09_requests_are_scheduled_and_limits_hold() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps", "probe"])?;
    cluster.push("switch", "myimage:latest")?;
    let file = cluster.file("01-pod-resources.yaml", include_str!("node/01-pod-resources.yaml"))?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let limited = |name: &str, args: &[&str], limits: Value| {
        let mut pod = steps(&node, name, "Never", args);
        pod["spec"]["containers"][0]["image"] = json!("probe:v1");
        pod["spec"]["containers"][0]["resources"] = json!({"limits": limits});
        pod
    };
    apply(
        &cluster,
        &[
            limited("grows", &["grow", "64"], json!({"memory": "16Mi"})),
            limited("fits", &["grow", "4"], json!({"memory": "64Mi"})),
            limited("spins", &["spin"], json!({"cpu": "100m"})),
        ],
    )?;
    let asked = status(&cluster, "mypod", "runs", |s| s["phase"] == "Running")
        .with_context(|| describe(&cluster, "pod", "mypod"))?;
    ensure!(asked["qosClass"] == "Burstable", "{asked:#}");
    let described = cluster.kubectl(&["describe", "node", &node])?;
    let row = described.lines().find(|l| l.contains("mypod")).context("mypod on its node")?;
    has(row, &["500m", "1 ", "500Mi", "4Gi"])?;
    let killed = status(&cluster, "grows", "is ended", |s| s["phase"] == "Failed")?;
    let end = &killed["containerStatuses"][0]["state"]["terminated"];
    ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{end:#}");
    status(&cluster, "fits", "succeeds", |s| s["phase"] == "Succeeded")?;
    // A tenth of a processor: over a few seconds it stays well below a half.
    let used = || -> Result<f64> {
        let text =
            cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics/resource")])?;
        let line = text
            .lines()
            .find(|l| l.starts_with("container_cpu_usage_seconds_total{") && l.contains("pod=\"spins\""));
        Ok(line.and_then(|l| l.split(' ').nth(1)).context("no CPU of spins")?.parse()?)
    };
    eventually("spins works", SOON, || Ok(used()? > 0.05))?;
    let (before, began) = (used()?, Instant::now());
    eventually("some seconds pass", SOON, || Ok(began.elapsed() > Duration::from_secs(4)))?;
    let share = (used()? - before) / began.elapsed().as_secs_f64();
    ensure!((0.01..0.5).contains(&share), "a limit of 0.1 CPU let it use {share}");
    // More than the node has is not scheduled.
    let mut huge = steps(&node, "huge", "Never", &["print never"]);
    huge["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    if let Some(spec) = huge["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    apply(&cluster, &[huge])?;
    eventually("huge waits with the reason", SOON, || {
        Ok(describe(&cluster, "pod", "huge").contains("Insufficient cpu"))
    })?;
    cluster.stop()
}

/// Ends with the test.
pub(crate) struct Plugin(Child);

impl Drop for Plugin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A plugin with one GPU that is none.
pub(crate) fn plugin(cluster: &Cluster) -> Result<Plugin> {
    let data = cluster.data_dir();
    let program = cluster.program();
    let directory = data.join("node").join("device-plugins");
    let mut command = cluster.command(program);
    command.arg("gpu-plugin").args(["--fake", "1"]).arg("--plugin-dir").arg(directory);
    Ok(Plugin(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// The plugin looks for hardware, says what it found, and goes on where there is none.
fn without_driver(cluster: &Cluster) -> Result<()> {
    let directory = cluster.data_dir().with_file_name("plugins");
    let mut command = cluster.command(cluster.program());
    command.arg("gpu-plugin").arg("--plugin-dir").arg(&directory).arg("--cdi-dir").arg(&directory);
    let mut plugin = Plugin(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
    let said = plugin.0.stderr.take().context("standard error")?;
    let line = BufReader::new(said).lines().next().context("the plugin said nothing")??;
    ensure!(line.contains("no GPU is advertised") || line.contains(" GPU id="), "{line}");
    eventually("its socket is there", SOON, || Ok(directory.join("coracle-gpu.sock").exists()))?;
    ensure!(plugin.0.try_wait()?.is_none(), "it ended");
    Ok(())
}

/// Row: devices: a pod has a GPU to itself, another waits until it is free, across restarts of the agent; wasm pods get one too
/// Profile: loopback
#[test]
fn mission_m21_a_gpu_is_one_pods_alone() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps"])?;
    cluster.push("switch", "nvidia/cuda:9.0-base")?;
    let manifest = include_str!("node/04-gpu-pod.yaml");
    let file = cluster.file("04-gpu-pod.yaml", manifest)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let insufficient = "Insufficient nvidia.com/gpu";
    eventually(
        "no node has a GPU",
        SOON,
        || Ok(describe(&cluster, "pod", "gpu-pod").contains(insufficient)),
    )?;

    without_driver(&cluster)?;
    let plugin = plugin(&cluster)?;
    let running = |s: &Value| s["phase"] == "Running";
    status(&cluster, "gpu-pod", "runs", running).with_context(|| describe(&cluster, "pod", "gpu-pod"))?;
    let capacity = cluster.get(&["node", &node])?["status"]["capacity"]["nvidia.com/gpu"].take();
    ensure!(capacity == "1", "{capacity}");

    let mut second = steps(&node, "second", "Always", &["env NVIDIA_VISIBLE_DEVICES", "sleep 600000"]);
    second["spec"]["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": 1}});
    if let Some(spec) = second["spec"].as_object_mut() {
        spec.remove("nodeName");
    }
    apply(&cluster, &[second])?;
    let waits = || Ok(describe(&cluster, "pod", "second").contains(insufficient));
    eventually("the second waits with the reason", SOON, waits)?;

    // The agent is killed and comes back: the first keeps its device.
    cluster.kill("node")?;
    eventually("the node has its GPU again", SOON, || {
        let allocatable = cluster.get(&["node", &node])?["status"]["allocatable"]["nvidia.com/gpu"].take();
        Ok(allocatable == "1")
    })?;
    let first = cluster.get(&["pod", "gpu-pod"])?;
    ensure!(first["status"]["containerStatuses"][0]["restartCount"] == 0, "{first:#}");
    ensure!(cluster.get(&["pod", "second"])?["status"]["phase"] == "Pending");

    cluster.kubectl(&["delete", "pod", "gpu-pod"])?;
    status(&cluster, "second", "runs", running).with_context(|| describe(&cluster, "pod", "second"))?;
    says(&cluster, "second", "NVIDIA_VISIBLE_DEVICES=fake-0")?;
    drop(plugin);
    cluster.stop()
}
