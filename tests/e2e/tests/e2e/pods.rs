//! What a pod is promised: configuration, volumes, restarts, probes, logs, events. Profile: loopback.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
pub(crate) use coracle_e2e::SOON;
use coracle_e2e::{Cluster, Ended, Profile, curl, eventually, load, succeed};
use serde_json::{Value, json};

use super::hello;

mod ending;
mod lifecycle;

/// A cluster with the tests' programs in its registry, and its node's name.
pub(crate) fn cluster(guests: &[&str]) -> Result<(Cluster, String)> {
    let cluster = Cluster::start(Profile::Loopback)?;
    for guest in guests {
        cluster.push(guest, &format!("{guest}:v1"))?;
    }
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    Ok((cluster, node))
}

/// A bare pod of one container that carries out `steps`.
pub(crate) fn steps(node: &str, name: &str, policy: &str, steps: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "restartPolicy": policy, "terminationGracePeriodSeconds": 2,
            "containers": [{"name": "main", "image": "steps:v1", "args": steps}],
        },
    })
}

pub(crate) fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = cluster.file("objects.json", &list.to_string())?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

/// Waits until the pod's status is as wanted; returns it.
pub(crate) fn status(
    cluster: &Cluster,
    pod: &str,
    what: &str,
    met: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    eventually(&format!("pod {pod}: {what}"), SOON, || {
        last = cluster.get(&["pod", pod])?["status"].take();
        Ok(met(&last))
    })
    .with_context(|| format!("{last:#}"))?;
    Ok(last)
}

pub(crate) fn has(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "no {missing:?} in\n{text}");
    Ok(())
}

/// Row: pods: env, arguments, ConfigMaps, Secrets and the downward API as variables and files; volumes shared by containers
#[test]
fn configuration_and_volumes_reach_containers() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps"])?;
    let manifest = include_str!("pods/config.yaml").replace("NODE\n", &format!("{node}\n"));
    let file = cluster.file("config.yaml", &manifest)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    let ended = status(&cluster, "config", "ends", |status| status["phase"] == "Succeeded")
        .with_context(|| cluster.kubectl(&["describe", "pod", "config"]).unwrap_or_default())?;
    ensure!(ended["initContainerStatuses"][0]["state"]["terminated"]["reason"] == "Completed", "{ended:#}");
    has(&cluster.kubectl(&["logs", "config", "-c", "first"])?, &["first done"])?;
    let ip = ended["podIP"].as_str().context("podIP")?;
    let said = cluster.kubectl(&["logs", "config", "-c", "main"])?;
    let lines = [
        "args: hello s3cret $(GREETING) $(NOPE)\n",
        "COMBINED=hello blue $(LATER)\n",
        "COLOR=blue\nMAYBE=(unset)\ncm_color=blue\ntoken=s3cret\nPOD=config\n",
        &format!("NODE_NAME={node}\nTIER=front\nNOTE=a \"b\"\nMEMORY=64\nCPU=20\nip: {ip}\n"),
        "/shared/made: by-init\n/shared/peer: by-peer\n/shared/under/file: below\n",
        "/cm/nested/color: blue\n/cm/file.txt: error NotFound\n/all/file.txt: from config\n",
        "/secret/token: s3cret\n/projected/c: blue\n/projected/s: s3cret\n/projected/name: config\n",
        "/down/labels: tier=\"front\"\n/down/memory: 67108864\n",
        "/cm/x: error",
        "/readonly/x: error",
        "/sub/file: written\n/shared/deep/er/file: in-sub\n",
    ];
    has(&said, &lines)?;
    let data = cluster.data_dir();
    let found = |pattern: &str| {
        succeed(Command::new("find").arg(&data).args(["-path", pattern, "-type", "f", "-printf", "%m\n"]))
    };
    // It has ended: its files are given back while its object and its logs stay.
    let uid = cluster.get(&["pod", "config"])?["metadata"]["uid"].as_str().context("uid")?.to_owned();
    eventually("its volumes are given back", SOON, || {
        // What goes while it is looked for is an error of find's.
        Ok(found(&format!("*/{uid}/volumes/*")).is_ok_and(|left| left.is_empty()))
    })?;
    let mut lives = steps(&node, "lives", "Always", &["sleep 600000"]);
    let color = json!([{"key": "color", "path": "nested/color", "mode": 0o440}]);
    lives["spec"]["volumes"] = json!([{"name": "cm", "configMap": {"name": "settings", "items": color}},
        {"name": "secret", "secret": {"secretName": "keys", "defaultMode": 0o600}},
        {"name": "all", "configMap": {"name": "settings"}}]);
    apply(&cluster, &[lives])?;
    status(&cluster, "lives", "runs", |status| status["phase"] == "Running")?;
    for (path, mode) in [("cm/*/nested/color", "440"), ("secret/*/token", "600"), ("all/*/color", "644")] {
        let found = found(&format!("*/volumes/*/{path}"))?;
        ensure!(found.trim() == mode, "{path} has mode {found:?} instead of {mode}");
    }
    what_is_refused(&cluster, &node)?;
    host_paths(&cluster, &node)?;
    what_comes_later(&cluster, &node)?;
    cluster.stop()
}

/// A subPath that names a file: WASI has directories only, and the pod says so.
fn what_is_refused(cluster: &Cluster, node: &str) -> Result<()> {
    let mut file = steps(node, "file", "Never", &["read /v"]);
    file["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/v", "subPath": "color"}]);
    file["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "settings"}}]);
    let mut absent = steps(node, "absent", "Never", &["read /v/x"]);
    absent["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "v", "mountPath": "/v", "subPath": "nowhere"}]);
    absent["spec"]["volumes"] = file["spec"]["volumes"].clone();
    let mut mapped = steps(node, "mapped", "Never", &["print ran as root"]);
    mapped["spec"]["hostUsers"] = json!(false);
    apply(cluster, &[file, absent, mapped])?;
    let words = "spec.hostUsers is not supported by this node";
    let refused = status(cluster, "mapped", "says why", |status| status.to_string().contains(words))?;
    ensure!(refused["phase"] != "Running" && refused["phase"] != "Succeeded", "{refused:#}");
    for (pod, reason, words) in [
        ("file", "CreateContainerError", "a wasm container mounts directories only"),
        ("absent", "CreateContainerConfigError", "does not exist in volume"),
    ] {
        let status = status(cluster, pod, "waits", |status| {
            status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
        })?;
        has(&status["containerStatuses"][0]["state"]["waiting"]["message"].to_string(), &[words])?;
    }
    Ok(())
}

/// Volumes of the node's own directories, and places in a volume that are named after the pod.
fn host_paths(cluster: &Cluster, node: &str) -> Result<()> {
    let (_dir, path) = super::agent::directory("open")?;
    std::fs::create_dir(&path)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777))?;
    std::fs::write(path.join("taken"), "")?;
    let at = |name: &str| path.join(name).display().to_string();
    let volume = |name: &str, kind: &str| json!({"name": "v", "hostPath": {"path": at(name), "type": kind}});
    let mount = |expr: &str| json!([{"name": "v", "mountPath": "/v", "subPathExpr": expr}]);
    let mut made = steps(node, "made", "Never", &["write /v/file hello", "read /v/file"]);
    made["spec"]["volumes"] = json!([volume("made/deep", "DirectoryOrCreate")]);
    made["spec"]["containers"][0]["volumeMounts"] = mount("$(POD)/logs");
    let field = json!({"fieldRef": {"fieldPath": "metadata.name"}});
    made["spec"]["containers"][0]["env"] = json!([{"name": "POD", "valueFrom": field}]);
    let mut unnamed = made.clone();
    unnamed["metadata"]["name"] = json!("unnamed");
    unnamed["spec"]["containers"][0]["volumeMounts"] = mount("$(POD)/$(NOPE)");
    let mut wrong = steps(node, "wrong", "Never", &["read /v/file"]);
    wrong["spec"]["volumes"] = json!([volume("taken", "Directory")]);
    wrong["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    apply(cluster, &[made, unnamed, wrong])?;
    status(cluster, "made", "ends", |status| status["phase"] == "Succeeded")?;
    has(&cluster.kubectl(&["logs", "made"])?, &["/v/file: hello"])?;
    ensure!(std::fs::read_to_string(path.join("made/deep/made/logs/file"))? == "hello");
    let waits = status(cluster, "unnamed", "waits", |status| {
        status["containerStatuses"][0]["state"]["waiting"]["reason"] == "CreateContainerConfigError"
    })?;
    let waiting = &waits["containerStatuses"][0]["state"]["waiting"];
    ensure!(waiting["message"] == "missing value for NOPE", "{waiting}");
    let words = format!(
        "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: {} is not a directory",
        at("taken")
    );
    eventually("an event says what is wrong", SOON, || {
        Ok(has(&cluster.kubectl(&["describe", "pod", "wrong"])?, &[&words]).is_ok())
    })?;
    // What is put right is found.
    std::fs::remove_file(path.join("taken"))?;
    std::fs::create_dir(path.join("taken"))?;
    std::fs::write(path.join("taken/file"), "now")?;
    status(cluster, "wrong", "ends", |status| status["phase"] == "Succeeded")?;
    has(&cluster.kubectl(&["logs", "wrong"])?, &["/v/file: now"])?;
    // What belongs to others stays when pods go.
    cluster.kubectl(&["delete", "pod", "made", "unnamed", "wrong", "--timeout=30s"])?;
    ensure!(path.join("made/deep/made/logs/file").is_file() && path.join("taken/file").is_file());
    Ok(())
}

/// Pods that name a ConfigMap which is made after them.
fn what_comes_later(cluster: &Cluster, node: &str) -> Result<()> {
    let mut by_env = steps(node, "late", "Never", &["env word", "sleep 60000"]);
    by_env["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "later"}}]);
    let mut by_volume = steps(node, "late-files", "Never", &["read /v/word", "sleep 60000"]);
    by_volume["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    by_volume["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "later"}}]);
    apply(cluster, &[by_env, by_volume])?;
    let reason = |reason: &'static str| {
        move |status: &Value| status["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    status(cluster, "late", "waits", reason("CreateContainerConfigError"))?;
    status(cluster, "late-files", "waits", reason("ContainerCreating"))?;
    let table = cluster.kubectl(&["get", "pods"])?;
    has(&table, &["CreateContainerConfigError", "ContainerCreating"])?;
    for (pod, words) in [
        ("late", "Error: configmap \"later\" not found"),
        ("late-files", "MountVolume.SetUp failed for volume \"v\" : configmap \"later\" not found"),
    ] {
        eventually("an event says what is missing", SOON, || {
            Ok(has(&cluster.kubectl(&["describe", "pod", pod])?, &[words]).is_ok())
        })?;
    }
    cluster.kubectl(&["create", "configmap", "later", "--from-literal=word=now"])?;
    for (pod, words) in [("late", "word=now"), ("late-files", "/v/word: now")] {
        let status = status(cluster, pod, "runs", |status| status["phase"] == "Running")?;
        ensure!(status["containerStatuses"][0]["state"]["waiting"].is_null(), "{status:#}");
        eventually(words, SOON, || Ok(cluster.kubectl(&["logs", pod])?.contains(words)))?;
    }
    Ok(())
}

/// Row: pods: init containers, sidecars, restart policies with back-off, logs, graceful deletion
#[test]
fn restarts_and_logs_are_as_users_know_them() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["steps"])?;
    apply(
        &cluster,
        &[
            steps(&node, "always", "Always", &["print once more", "exit 1"]),
            steps(&node, "again", "OnFailure", &["exit 1"]),
            steps(&node, "once", "OnFailure", &["print fine"]),
            steps(&node, "never", "Never", &["exit 1"]),
            steps(&node, "ticks", "Never", &["tick 60 50"]),
            steps(&node, "stays", "Always", &["print here", "sleep 600000"]),
            lifecycle::with_init(&node, "init-fails", "Never", json!({"args": ["print oh no", "exit 1"]})),
            lifecycle::with_init(&node, "init-loops", "Always", json!({"args": ["exit 1"]})),
            lifecycle::with_init(
                &node,
                "helped",
                "Never",
                json!({"args": ["sleep 600000"], "restartPolicy": "Always"}),
            ),
        ],
    )?;
    lifecycle::logs(&cluster)?;
    lifecycle::restarts(&cluster)?;
    lifecycle::inits(&cluster)?;
    ending::grace(&cluster, &node)?;
    cluster.stop()
}

/// A pod of `switch`, whose probes ask for files.
fn switch(node: &str, name: &str) -> Value {
    let probe = |path: &str, failures: u8| json!({"httpGet": {"path": path, "port": "web"}, "periodSeconds": 1, "failureThreshold": failures});
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "switch"}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "web", "image": "switch:v1", "ports": [{"name": "web", "containerPort": 8080}],
                // The one that restarts leaves time to heal between two failures.
                "readinessProbe": probe("/is/ready", 1), "livenessProbe": probe("/not/sick", 3),
                "volumeMounts": [{"name": "state", "mountPath": "/state"}],
            }],
            "volumes": [{"name": "state", "emptyDir": {}}],
        },
    })
}

pub(crate) fn ready(status: &Value) -> bool {
    status["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Row: pods: readiness, liveness and startup probes
#[test]
fn probes_decide_who_serves_and_who_restarts() -> Result<Ended> {
    let (mut cluster, node) = cluster(&["switch"])?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "switch"},
        "spec": {"selector": {"app": "switch"}, "ports": [{"port": 8080, "targetPort": "web"}]},
    });
    let mut slow = switch(&node, "slow");
    slow["metadata"]["labels"] = json!({});
    slow["spec"]["containers"][0]["startupProbe"] =
        json!({"httpGet": {"path": "/is/started", "port": 8080}, "periodSeconds": 1, "failureThreshold": 60});
    let health = |service: &str| json!({"grpc": {"port": 8080, "service": service}, "periodSeconds": 1, "failureThreshold": 1});
    let mut asked = switch(&node, "asked");
    asked["metadata"]["labels"] = json!({});
    asked["spec"]["containers"][0]["livenessProbe"] = health("alive");
    asked["spec"]["containers"][0]["startupProbe"] = health("alive");
    asked["spec"]["containers"][0]["startupProbe"]["failureThreshold"] = json!(60);
    asked["spec"]["containers"][0]["readinessProbe"] = health("ready");
    apply(&cluster, &[switch(&node, "a"), switch(&node, "b"), slow, asked, service])?;
    let mut urls = Vec::new();
    for pod in ["a", "b"] {
        let running = status(&cluster, pod, "runs", |status| status["phase"] == "Running")?;
        ensure!(!ready(&running), "ready before its probe: {running:#}");
        let url = format!("http://{}:8080", running["podIP"].as_str().context("podIP")?);
        eventually("the handler answers", SOON, || curl(&format!("{url}/on/ready")).map(|_| true))?;
        status(&cluster, pod, "is ready", ready)?;
        urls.push(url);
    }
    let ip = cluster.kubectl(&["get", "service", "switch", "-o", "jsonpath={.spec.clusterIP}"])?;
    let answers = || -> Result<Vec<String>> {
        let mut all = (0..12).map(|_| curl(&format!("http://{ip}:8080/"))).collect::<Result<Vec<_>>>()?;
        all.sort();
        all.dedup();
        Ok(all)
    };
    eventually("both pods serve", SOON, || Ok(answers()? == ["a", "b"]))?;
    curl(&format!("{}/off/ready", urls[0]))?;
    status(&cluster, "a", "is not ready", |status| !ready(status))?;
    eventually("only b serves", SOON, || Ok(answers()? == ["b"]))?;
    ensure!(answers()? == ["b"]);
    has(&cluster.kubectl(&["get", "pod", "a"])?, &["0/1", "Running"])?;
    curl(&format!("{}/on/ready", urls[0]))?;
    eventually("both pods serve again", SOON, || Ok(answers()? == ["a", "b"]))?;

    curl(&format!("{}/on/sick", urls[1]))?;
    let count = |status: &Value| status["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(0);
    status(&cluster, "b", "is restarted", |status| count(status) == 1)?;
    eventually("b answers again", SOON, || curl(&format!("{}/off/sick", urls[1])).map(|_| true))?;
    status(&cluster, "b", "is ready again", ready)?;
    let described = cluster.kubectl(&["describe", "pod", "b"])?;
    has(
        &described,
        &[
            "Liveness probe failed: HTTP probe failed with statuscode: 503",
            "Container web failed liveness probe, will be restarted",
        ],
    )?;
    has(
        &cluster.kubectl(&["describe", "pod", "a"])?,
        &["Readiness probe failed: HTTP probe failed with statuscode: 503"],
    )?;
    starts_slowly(&cluster)?;
    is_asked_by_grpc(&cluster)?;
    // Another agent goes on where the one before was.
    cluster.kill("node")?;
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for (pod, restarts) in [("a", 0), ("b", 1)] {
            let status = cluster.get(&["pod", pod])?["status"].take();
            ensure!(ready(&status) && count(&status) == restarts, "{pod} changed: {status:#}");
        }
        answers()?;
    }
    curl(&format!("{}/off/ready", urls[0]))?;
    status(&cluster, "a", "is not ready", |status| !ready(status))?;
    cluster.stop()
}

/// A startup probe holds the others back.
fn starts_slowly(cluster: &Cluster) -> Result<()> {
    let slow = status(cluster, "slow", "runs", |status| status["phase"] == "Running")?;
    ensure!(slow["containerStatuses"][0]["started"] == false && !ready(&slow), "{slow:#}");
    let url = format!("http://{}:8080", slow["podIP"].as_str().context("podIP")?);
    curl(&format!("{url}/on/ready"))?;
    curl(&format!("{url}/on/started"))?;
    let slow = status(cluster, "slow", "is ready", ready)?;
    ensure!(slow["containerStatuses"][0]["started"] == true, "{slow:#}");
    has(
        &cluster.kubectl(&["describe", "pod", "slow"])?,
        &["Startup probe failed: HTTP probe failed with statuscode: 503"],
    )
}

/// gRPC's health service, asked of one service by each probe.
fn is_asked_by_grpc(cluster: &Cluster) -> Result<()> {
    let running = status(cluster, "asked", "runs", |status| status["phase"] == "Running")?;
    let url = format!("http://{}:8080", running["podIP"].as_str().context("podIP")?);
    ensure!(running["containerStatuses"][0]["started"] == false && !ready(&running), "{running:#}");
    curl(&format!("{url}/on/alive"))?;
    let started = |status: &Value| status["containerStatuses"][0]["started"] == true;
    status(cluster, "asked", "has started", started)?;
    curl(&format!("{url}/on/ready"))?;
    status(cluster, "asked", "is ready", ready)?;
    curl(&format!("{url}/off/ready"))?;
    status(cluster, "asked", "is not ready", |status| !ready(status))?;
    curl(&format!("{url}/off/alive"))?;
    status(cluster, "asked", "is restarted", |status| status["containerStatuses"][0]["restartCount"] == 1)?;
    let words = ["Readiness", "Liveness", "Startup"]
        .map(|kind| format!("{kind} probe failed: service unhealthy (responded with \"NOT_SERVING\")"));
    has(&cluster.kubectl(&["describe", "pod", "asked"])?, &words.each_ref().map(String::as_str))
}

/// Row: workloads: a rolling update and its undo under load fail no request
#[test]
fn a_rolling_update_fails_no_request() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    hello::deploy(&cluster)?;
    let address = hello::service_address(&cluster)?;
    let url = format!("http://{address}/");
    eventually("the Service answers", SOON, || curl(&url).map(|_| true))?;
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Runtime::new()?;
    let running = runtime.spawn(load::run(address.parse()?, 8, 1_000, stop.clone()));
    let rollout = |change: &[&str], greeting: &str| -> Result<()> {
        let mut args = vec!["-n", "hello"];
        args.extend(change);
        cluster.kubectl(&args)?;
        cluster.kubectl(&["-n", "hello", "rollout", "status", "deploy/hello", "--timeout=60s"])?;
        eventually("only new pods answer", SOON, || {
            let answers = (0..12).map(|_| curl(&url)).collect::<Result<Vec<_>>>()?;
            Ok(answers.iter().all(|answer| answer.starts_with(greeting)))
        })
    };
    rollout(&["set", "env", "deploy/hello", "GREETING=Hi"], "Hi from hello-")?;
    rollout(&["rollout", "undo", "deploy/hello"], "Hello from hello-")?;
    stop.store(true, Ordering::Relaxed);
    let outcome = runtime.block_on(running)?;
    ensure!(outcome.failures.is_empty(), "{} answered; failures: {:?}", outcome.answered, outcome.failures);
    let history = cluster.kubectl(&["-n", "hello", "rollout", "history", "deploy/hello"])?;
    has(&history, &["REVISION", "2", "3"])?;
    cluster.stop()
}
