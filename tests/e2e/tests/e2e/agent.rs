//! The node agent as operators know a kubelet: logs that are put aside, eviction under pressure, static pods,
//! reservations, and how containers of a pod end. Profile: loopback.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually};
use serde_json::{Value, json};

mod claims;
mod crashes;
pub(crate) mod csi;
mod limits;

use super::pods::{SOON, apply, has, status, steps};

/// A cluster with these flags of the node and the program `steps`, and its node's name.
fn cluster(flags: &[&str]) -> Result<(Cluster, String)> {
    let cluster = Cluster::start_with(Profile::Loopback, flags)?;
    cluster.push("steps", "steps:v1")?;
    let node = cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    Ok((cluster, node))
}

/// A directory that the cluster's user can read.
pub(crate) fn directory(name: &str) -> Result<(tempfile::TempDir, PathBuf)> {
    let dir = tempfile::Builder::new().prefix("coracle-e2e-agent-").tempdir()?;
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = dir.path().join(name);
    Ok((dir, path))
}

fn condition(node: &Value, kind: &str) -> String {
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.iter().find(|c| c["type"] == kind).and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

/// How often a node's Lease is renewed while its agent looks once at each pod to which nothing happens (every 30 seconds), and
/// at least once more.
const RENEWALS: u32 = 5;

/// Row: pods: of a pod to which nothing happens no status is written
#[test]
fn pods_to_which_nothing_happens_are_not_written() -> Result<Ended> {
    let (mut cluster, node) = cluster(&[])?;
    cluster.push("hello", "hello:v1")?;
    let plain = steps(&node, "plain", "Always", &["sleep 600000"]);
    let mut full = steps(&node, "full", "Always", &["sleep 600000"]);
    full["spec"]["initContainers"] = json!([
        {"name": "first", "image": "steps:v1", "args": ["print done"]},
        {"name": "side", "image": "steps:v1", "args": ["sleep 600000"], "restartPolicy": "Always"},
    ]);
    full["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    let main = &mut full["spec"]["containers"][0];
    main["resources"] = json!({"requests": {"cpu": "0.1", "memory": "64Mi"}, "limits": {"memory": "0.5Gi"}});
    main["volumeMounts"] = json!([{"name": "data", "mountPath": "/data", "readOnly": true}]);
    let done = steps(&node, "done", "Never", &["print done"]);
    let mut probed = steps(&node, "probed", "Always", &[]);
    probed["spec"]["containers"] = json!([{"name": "main", "image": "hello:v1", "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1}}]);
    probed["spec"]["hostAliases"] = json!([{"ip": "127.0.0.1", "hostnames": ["here"]}]);
    apply(&cluster, &[plain, full, done, probed])?;
    for name in ["plain", "full", "probed"] {
        status(&cluster, name, "is ready", |status| {
            condition(&json!({"status": status}), "Ready") == "True"
        })?;
    }
    status(&cluster, "done", "has ended", |status| status["phase"] == "Succeeded")?;
    let written = || -> Result<u64> {
        let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
        let of_status = |line: &&str| {
            line.starts_with("apiserver_request_total{")
                && [r#"resource="pods""#, r#"subresource="status""#].iter().all(|label| line.contains(label))
        };
        let counts = metrics.lines().filter(of_status).filter_map(|line| line.rsplit(' ').next());
        let sum = counts.map(str::parse::<u64>).sum::<Result<_, _>>()?;
        ensure!(sum > 0, "the server counts no status that is written");
        Ok(sum)
    };
    let before = written()?;
    let renewed = || {
        cluster.kubectl(&["get", "lease", &node, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"])
    };
    let (mut last, mut renewals) = (renewed()?, 0);
    eventually("the agent goes on", 3 * SOON, || {
        let now = renewed()?;
        renewals += u32::from(std::mem::replace(&mut last, now.clone()) != now);
        Ok(renewals >= RENEWALS)
    })?;
    let after = written()?;
    ensure!(after == before, "{} statuses were written of pods to which nothing happened", after - before);
    cluster.stop()
}

/// Row: pods: logs are put aside when they are large; kubectl logs shows all that is kept, and follows across
#[test]
fn logs_go_on_across_files_that_were_put_aside() -> Result<Ended> {
    let flags = [
        "--container-log-max-size=4Ki",
        "--container-log-max-files=50",
        "--container-log-monitor-interval=1s",
    ];
    let (mut cluster, node) = cluster(&flags)?;
    apply(&cluster, &[steps(&node, "ticks", "Never", &["tick 400 15", "sleep 600000"])])?;
    status(&cluster, "ticks", "runs", |status| status["phase"] == "Running")?;
    let all: String = (1..=400).map(|n| format!("tick {n}\n")).collect();
    eventually("all is written", SOON, || Ok(cluster.kubectl(&["logs", "ticks"])? == all))?;
    let data = cluster.data_dir();
    let files = coracle_e2e::succeed(std::process::Command::new("find").arg(data).args([
        "-path",
        "*ticks*/main/0.log*",
        "-type",
        "f",
    ]))?;
    ensure!(files.lines().count() >= 3, "nothing was put aside: {files}");
    let tail: String = (101..=400).map(|n| format!("tick {n}\n")).collect();
    ensure!(cluster.kubectl(&["logs", "ticks", "--tail=300"])? == tail);
    ensure!(cluster.kubectl(&["logs", "ticks", "--limit-bytes=9"])? == "tick 1\nti");
    // One that follows from the first line while files are put aside misses nothing and repeats nothing.
    apply(&cluster, &[steps(&node, "more", "Never", &["tick 400 15"])])?;
    status(&cluster, "more", "runs", |status| status["phase"] == "Running")?;
    let followed = cluster.kubectl(&["logs", "-f", "more"])?;
    ensure!(followed == all, "{} lines: {followed}", followed.lines().count());
    cluster.stop()
}

fn asks(mut pod: Value, memory: &str) -> Value {
    pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": memory}});
    pod
}

/// Row: node: under pressure the node says so and evicts who uses more than was asked for, one at a time; new pods are kept out
#[test]
fn pressure_evicts_those_who_asked_for_nothing_first() -> Result<Ended> {
    let (_dir, signals) = directory("signals.json")?;
    let file = format!("--eviction-signals-file={}", signals.display());
    let flags = [
        file.as_str(),
        "--eviction-hard=memory.available<50Mi,pid.available<10",
        "--eviction-soft=memory.available<100Mi",
        "--eviction-soft-grace-period=memory.available=1s",
        "--eviction-max-pod-grace-period=8",
        "--eviction-monitoring-period=1s",
        "--eviction-pressure-transition-period=20s",
        "--kube-reserved=cpu=100m,memory=200Mi",
        "--system-reserved=cpu=100m",
    ];
    let (mut cluster, node) = cluster(&flags)?;
    let now = cluster.get(&["node", &node])?;
    let cpu = |field: &str| {
        let text = now["status"][field]["cpu"].as_str().unwrap_or_default().to_owned();
        text.strip_suffix('m').map_or_else(|| text.parse::<i64>().map(|n| n * 1000), str::parse).unwrap_or(0)
    };
    let memory = |field: &str| -> i64 {
        let text = now["status"][field]["memory"].as_str().unwrap_or_default();
        text.trim_end_matches("Ki").parse().unwrap_or(0)
    };
    ensure!(cpu("capacity") - cpu("allocatable") == 200, "{:#}", now["status"]);
    ensure!(memory("capacity") - memory("allocatable") == 250 * 1024, "{:#}", now["status"]);
    ensure!(now["status"]["capacity"]["ephemeral-storage"].is_string(), "{:#}", now["status"]);
    ensure!(condition(&now, "MemoryPressure") == "False");

    let stays = ["print here", "sleep 600000"];
    // What an evicted pod has of grace is the time in which this test ends the shortage.
    let mut greedy = steps(&node, "greedy", "Always", &stays);
    greedy["spec"]["terminationGracePeriodSeconds"] = json!(60);
    greedy["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 50}}});
    apply(&cluster, &[asks(steps(&node, "asked", "Always", &stays), "256Mi"), greedy])?;
    for pod in ["asked", "greedy"] {
        status(&cluster, pod, "is ready", super::pods::ready)?;
    }
    std::fs::write(&signals, r#"{"memory.available": "60Mi"}"#)?;
    eventually("an Event tells", SOON, || {
        Ok(cluster.kubectl(&["get", "events"])?.contains("The node was low on resource"))
    })?;
    std::fs::write(&signals, r#"{"memory.available": "5Gi"}"#)?;
    let evicted = status(&cluster, "greedy", "is evicted", |status| status["phase"] == "Failed")?;
    ensure!(evicted["reason"] == "Evicted", "{evicted:#}");
    let words = ["The node was low on resource: memory. Threshold quantity: 100Mi, available: 60Mi. "];
    has(&evicted["message"].to_string(), &words)?;
    let disrupted = evicted["conditions"].as_array().is_some_and(|all| {
        all.iter().any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "TerminationByKubelet")
    });
    ensure!(disrupted, "{evicted:#}");
    ensure!(status(&cluster, "asked", "is there", |_| true)?["phase"] == "Running");
    has(&cluster.kubectl(&["describe", "pod", "greedy"])?, &["Evicted", "The node was low on resource"])?;
    // The condition holds for a while and keeps others out.
    eventually("the node says so", SOON, || {
        Ok(condition(&cluster.get(&["node", &node])?, "MemoryPressure") == "True")
    })?;
    apply(&cluster, &[steps(&node, "late", "Always", &stays)])?;
    let late = status(&cluster, "late", "is told", |status| status["phase"] != "Pending")?;
    if late["phase"] == "Failed" {
        has(&late["message"].to_string(), &["Pod was rejected: The node had condition: [MemoryPressure]. "])?;
    }
    eventually("it is over", 6 * SOON, || {
        Ok(condition(&cluster.get(&["node", &node])?, "MemoryPressure") == "False")
    })
    .with_context(|| format!("{:#?}\n{}", cluster.get(&["node", &node]), cluster.logs()))?;
    eventually("Events tell", SOON, || {
        let events = cluster.kubectl(&["get", "events", "-A"])?;
        has(&events, &["EvictionThresholdMet", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"])?;
        Ok(true)
    })?;
    ensure!(status(&cluster, "asked", "is there", |_| true)?["phase"] == "Running");
    cluster.stop()
}

/// Row: node: static pods run from a directory, have mirrors in the API, follow their files, and outlive the agent
#[test]
fn static_pods_run_from_files() -> Result<Ended> {
    let (_dir, manifests) = directory("manifests")?;
    std::fs::create_dir(&manifests)?;
    std::fs::set_permissions(&manifests, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let flag = format!("--pod-manifest-path={}", manifests.display());
    let (mut cluster, node) = cluster(&[flag.as_str()])?;
    let pod = |words: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{app: web}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - name: main\n    image: steps:v1\n    args: ['print {words}', 'sleep 600000']\n"
        )
    };
    let write = |words: &str| -> Result<()> {
        // As editors do: another file that takes the place.
        let next = manifests.join(".next");
        std::fs::write(&next, pod(words))?;
        Ok(std::fs::rename(&next, manifests.join("web.yaml"))?)
    };
    write("one")?;
    let mirror = format!("web-{node}");
    let running = status(&cluster, &mirror, "is ready", super::pods::ready);
    let running = match running {
        Ok(running) => running,
        Err(_) => {
            eventually("the mirror is there", SOON, || cluster.get(&["pod", &mirror]).map(|_| true))?;
            status(&cluster, &mirror, "is ready", super::pods::ready)?
        }
    };
    ensure!(running["podIP"].is_string(), "{running:#}");
    let object = cluster.get(&["pod", &mirror])?;
    let annotations = &object["metadata"]["annotations"];
    ensure!(annotations["kubernetes.io/config.source"] == "file", "{object:#}");
    ensure!(object["metadata"]["ownerReferences"][0]["kind"] == "Node", "{object:#}");
    ensure!(cluster.kubectl(&["logs", &mirror])? == "one\n");
    has(&cluster.kubectl(&["describe", "pod", &mirror])?, &["Container started: main"])?;
    // Deleting the mirror ends nothing: it comes back.
    let id = |status: &Value| status["containerStatuses"][0]["containerID"].as_str().map(str::to_owned);
    let uid = object["metadata"]["uid"].clone();
    cluster.kubectl(&["delete", "pod", &mirror, "--wait=false"])?;
    eventually("another mirror", SOON, || Ok(cluster.get(&["pod", &mirror])?["metadata"]["uid"] != uid))?;
    let again = status(&cluster, &mirror, "is ready", super::pods::ready)?;
    ensure!(id(&again) == id(&running), "the container was restarted: {again:#}");
    // Neither does another agent, nor a directory that is not there when it comes.
    let away = manifests.with_file_name("away");
    std::fs::rename(&manifests, &away)?;
    cluster.kill("node")?;
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let now = status(&cluster, &mirror, "is there", |_| true)?;
        ensure!(id(&now) == id(&running), "{now:#}");
    }
    let uid = cluster.get(&["pod", &mirror])?["metadata"]["uid"].take();
    std::fs::rename(&away, &manifests)?;
    // From now on the agent knows all pods, and has this one.
    write("one")?;
    cluster.kubectl(&["delete", "pod", &mirror, "--wait=false"])?;
    eventually("another mirror", SOON, || Ok(cluster.get(&["pod", &mirror])?["metadata"]["uid"] != uid))?;
    let again = status(&cluster, &mirror, "is ready", super::pods::ready)?;
    ensure!(id(&again) == id(&running), "the container was restarted: {again:#}");
    // Another file is another pod; no file is none.
    write("two")?;
    eventually("the new file's pod", SOON, || Ok(cluster.kubectl(&["logs", &mirror])? == "two\n"))?;
    std::fs::remove_file(manifests.join("web.yaml"))?;
    eventually("the mirror is gone", SOON, || {
        Ok(cluster.kubectl_fails(&["get", "pod", &mirror])?.contains("not found"))
    })?;
    cluster.stop()
}

/// Row: pods: containers restart by their own policies and rules; sidecars end last, in reverse; a second deletion cuts the grace short
#[test]
fn containers_end_and_restart_as_they_say() -> Result<Ended> {
    let (mut cluster, node) = cluster(&[])?;
    let mut own = steps(&node, "own", "Always", &["print ran", "exit 1"]);
    own["spec"]["containers"][0]["restartPolicy"] = json!("Never");
    let mut job = steps(&node, "job", "Never", &["print done"]);
    let twice =
        json!({"name": "twice", "image": "steps:v1", "args": ["exit 1"], "restartPolicy": "OnFailure"});
    job["spec"]["containers"].as_array_mut().context("containers")?.push(twice);
    let mut helped = steps(&node, "helped", "Always", &["print main", "sleep 600000"]);
    let sidecar = |name: &str| json!({"name": name, "image": "steps:v1", "args": ["sleep 600000"], "restartPolicy": "Always"});
    helped["spec"]["initContainers"] = json!([sidecar("first"), sidecar("second")]);
    helped["spec"]["terminationGracePeriodSeconds"] = json!(20);
    // Hooks run at once; the containers themselves wait for their turns.
    let sleeps = |seconds: u32| json!({"preStop": {"sleep": {"seconds": seconds}}});
    helped["spec"]["containers"][0]["lifecycle"] = sleeps(2);
    helped["spec"]["initContainers"][1]["lifecycle"] = sleeps(4);
    let mut slow = steps(&node, "slow", "Always", &["sleep 600000"]);
    slow["spec"]["terminationGracePeriodSeconds"] = json!(600);
    let hook = json!({"preStop": {"sleep": {"seconds": 500}}});
    slow["spec"]["containers"][0]["lifecycle"] = hook;
    apply(&cluster, &[own, job, helped, slow])?;

    let failed = status(&cluster, "own", "has failed", |status| status["phase"] == "Failed")?;
    ensure!(failed["containerStatuses"][0]["restartCount"] == 0, "{failed:#}");
    status(&cluster, "job", "goes on", |status| {
        let all = status["containerStatuses"].as_array().cloned().unwrap_or_default();
        let of = |name: &str| all.iter().find(|c| c["name"] == name).cloned().unwrap_or_default();
        status["phase"] == "Running"
            && of("main")["state"]["terminated"]["exitCode"] == 0
            && of("twice")["restartCount"].as_i64().is_some_and(|n| n >= 1)
    })?;

    status(&cluster, "helped", "is ready", super::pods::ready)?;
    let mut watch = cluster.command(coracle_e2e::kubectl()?);
    let watch = watch.args(["get", "pod", "helped", "--watch", "--output-watch-events", "-o", "json"]);
    let mut watch = watch.stdout(std::process::Stdio::piped()).spawn()?;
    cluster.kubectl(&["delete", "pod", "helped", "--timeout=30s"])?;
    eventually("Events tell", SOON, || {
        has(&cluster.kubectl(&["get", "events"])?, &["Stopping container second"])?;
        Ok(true)
    })?;
    watch.kill()?;
    let seen = watch.wait_with_output()?;
    let last = ended(&String::from_utf8_lossy(&seen.stdout))?;
    ensure!(last["phase"] == "Failed" || last["phase"] == "Succeeded", "{last:#}");
    let at = |list: &str, name: &str| -> Result<String> {
        let all = last[list].as_array().context("statuses")?;
        let one = all.iter().find(|c| c["name"] == name).context("the status")?;
        Ok(one["state"]["terminated"]["finishedAt"].as_str().context("the end")?.to_owned())
    };
    let (main, first, second) = (
        at("containerStatuses", "main")?,
        at("initContainerStatuses", "first")?,
        at("initContainerStatuses", "second")?,
    );
    ensure!(main < second && second <= first, "{main} {second} {first}");

    status(&cluster, "slow", "is ready", super::pods::ready)?;
    let started = Instant::now();
    cluster.kubectl(&["delete", "pod", "slow", "--wait=false"])?;
    eventually("it leaves", SOON, || {
        Ok(cluster.get(&["pod", "slow"])?["metadata"]["deletionGracePeriodSeconds"] == 600)
    })?;
    cluster.kubectl(&["delete", "pod", "slow", "--grace-period=1", "--timeout=30s"])?;
    ensure!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    cluster.stop()
}

/// The last status of a pod that a watch has seen.
fn ended(events: &str) -> Result<Value> {
    let mut last = None;
    for event in serde_json::Deserializer::from_str(events).into_iter::<Value>() {
        let Ok(event) = event else { break };
        last = Some(event["object"]["status"].clone());
    }
    last.context("the watch saw nothing")
}
