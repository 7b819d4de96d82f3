//! Linux images beside wasm. Profile: routed.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, layout};
use serde_json::{Value, json};

mod host_network;
mod promises;
mod resources;
mod volumes;

fn cluster() -> Result<Cluster> {
    cluster_with(&[])
}

fn cluster_with(flags: &[&str]) -> Result<Cluster> {
    let cluster = Cluster::start_with(Profile::Routed, flags)?;
    let dir = cluster.data_dir().with_file_name("busybox");
    layout::busybox(
        &dir,
        json!({"Cmd": ["sleep", "100000"], "Env": ["PATH=/bin", "FROM=image"], "StopSignal": "SIGKILL"}),
    )?;
    cluster.coracle(&["image", "push", &dir.display().to_string(), "busybox:v1"])?;
    cluster.push("web", "web:v1")?;
    Ok(cluster)
}

fn apply(cluster: &Cluster, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let file = cluster.file("objects.json", &list.to_string())?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

fn pod(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec})
}

fn ready(cluster: &Cluster, name: &str) -> Result<String> {
    let waited = cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]);
    waited.with_context(|| {
        format!("{}\n{}", cluster.kubectl(&["describe", "pod", name]).unwrap_or_default(), cluster.logs())
    })?;
    let pod = cluster.get(&["pod", name])?;
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

/// Waits until the logs of a container have this text.
fn says(cluster: &Cluster, pod: &str, container: &str, text: &str) -> Result<()> {
    eventually(&format!("the log of {pod}/{container} has {text:?}"), SOON, || {
        let log = cluster.kubectl(&["logs", pod, "-c", container])?;
        ensure!(log.contains(text), "{log}");
        Ok(true)
    })
}

/// Row: Linux containers: an image that is not wasm runs through the OCI runtime: its own address, logs, exit codes, limits, exec probes; wasm and Linux containers share a pod
#[test]
fn mission_m30_a_linux_image_runs_beside_wasm() -> Result<Ended> {
    let mut cluster = cluster()?;
    let shell = |script: &str| json!(["/bin/sh", "-c", script]);
    let linux =
        |name: &str, script: &str| json!({"name": name, "image": "busybox:v1", "command": shell(script)});
    let mut server = linux(
        "c",
        "echo $FROM $(hostname); echo hello from linux > /tmp/index.html; exec httpd -f -p 8080 -h /tmp",
    );
    server["readinessProbe"] = json!({"exec": {"command": ["/bin/true"]}, "periodSeconds": 1});
    let mut greedy = linux("c", "x=0123456789; while true; do x=$x$x; done");
    greedy["resources"] = json!({"limits": {"memory": "32Mi"}});
    apply(
        &cluster,
        &[
            pod("server", json!({"terminationGracePeriodSeconds": 1, "containers": [server]})),
            pod("fails", json!({"restartPolicy": "Never", "containers": [linux("c", "echo out; exit 7")]})),
            pod("greedy", json!({"restartPolicy": "Never", "containers": [greedy]})),
            pod(
                "mixed",
                json!({"terminationGracePeriodSeconds": 1, "volumes": [{"name": "shared", "emptyDir": {}}], "containers": [
                    {"name": "wasm", "image": "web:v1", "ports": [{"containerPort": 8080}], "env": [{"name": "POD", "value": "mixed"}]},
                    {"name": "linux", "image": "busybox:v1", "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
                        "command": shell("until wget -q -O - http://127.0.0.1:8080/; do sleep 0.2; done; ip -4 addr show eth0; echo done; exec sleep 100000")},
                ]}),
            ),
        ],
    )?;

    // Its own address, reached from the node; its log; what the image says of itself.
    let address = ready(&cluster, "server")?;
    let host = cluster.host().context("no host")?;
    ensure!(host.curl(&format!("http://{address}:8080/"))?.contains("hello from linux"));
    says(&cluster, "server", "c", "image server")?;

    // Exit codes and limits.
    for (name, code, reason) in [("fails", 7, "Error"), ("greedy", 137, "OOMKilled")] {
        eventually(&format!("{name} has ended"), SOON, || {
            let pod = cluster.get(&["pod", name])?;
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            ensure!(ended["exitCode"] == code && ended["reason"] == reason, "{}", pod["status"]);
            Ok(true)
        })?;
    }
    ensure!(cluster.kubectl(&["logs", "fails"])?.contains("out"));

    // One pod, one address: the Linux container reaches the wasm one on the loopback.
    let address = ready(&cluster, "mixed")?;
    says(&cluster, "mixed", "linux", "hello from mixed")?;
    says(&cluster, "mixed", "linux", &format!("inet {address}/"))?;
    ensure!(host.curl(&format!("http://{address}:8080/"))?.contains("hello from mixed"));

    // The runtime may die: nothing is restarted.
    let ids = |cluster: &Cluster| -> Result<Vec<String>> {
        let pods = cluster.get(&["pods", "server", "mixed"])?;
        let statuses = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|p| p["status"]["containerStatuses"].as_array().cloned().unwrap_or_default());
        Ok(statuses.map(|s| format!("{} {}", s["containerID"], s["restartCount"])).collect())
    };
    let before = ids(&cluster)?;
    cluster.kill("runtime")?;
    eventually("the runtime is back", SOON, || {
        ensure!(host.curl(&format!("http://{address}:8080/"))?.contains("hello from mixed"));
        Ok(cluster.get(&["node", "node-1"])?["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")))
    })?;
    ensure!(ids(&cluster)? == before, "{before:?} became {:?}", ids(&cluster)?);
    cluster.kubectl(&["delete", "pod", "--all", "--timeout=60s"])?;
    cluster.stop()
}

/// Row: streams: exec with input, output, exit code and terminal, cp, attach and port-forward on Linux and wasm containers of one pod
#[test]
fn streams_reach_linux_and_wasm_containers() -> Result<Ended> {
    let mut cluster = cluster()?;
    let shell = |script: &str| json!(["/bin/sh", "-c", script]);
    apply(
        &cluster,
        &[pod(
            "mixed",
            json!({"terminationGracePeriodSeconds": 1, "volumes": [{"name": "shared", "emptyDir": {}}], "containers": [
                {"name": "linux", "image": "busybox:v1", "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
                    "command": shell("i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.2; done")},
                {"name": "wasm", "image": "web:v1", "volumeMounts": [{"name": "shared", "mountPath": "/data"}],
                    "ports": [{"containerPort": 8080}], "env": [{"name": "POD", "value": "mixed"}]},
            ]}),
        )],
    )?;
    ready(&cluster, "mixed")?;
    let exec = |container: &str, args: &[&str]| {
        let mut all = vec!["exec", "mixed", "-c", container, "--"];
        all.extend(args);
        cluster.kubectl(&all)
    };
    ensure!(exec("linux", &["/bin/sh", "-c", "echo $FROM; echo written > /data/note"])?.contains("image"));
    ensure!(exec("wasm", &["cat", "/data/note"])? == "written\n");
    ensure!(exec("wasm", &["printenv", "POD"])? == "mixed\n");
    let failed = cluster.kubectl_fails(&["exec", "mixed", "-c", "linux", "--", "/bin/sh", "-c", "exit 5"])?;
    ensure!(failed.contains("exit code 5"), "{failed}");
    let unknown = cluster.kubectl_fails(&["exec", "mixed", "-c", "wasm", "--", "bash"])?;
    ensure!(unknown.contains("exit code 127") && unknown.contains("wasm container"), "{unknown}");

    // Input goes in, and a terminal has one output.
    let input = cluster.file("input", "one\ntwo\n")?;
    let mut command = cluster.command(coracle_e2e::kubectl()?);
    command
        .args(["exec", "-i", "mixed", "-c", "linux", "--", "wc", "-l"])
        .stdin(std::fs::File::open(&input)?);
    ensure!(coracle_e2e::succeed(&mut command)?.trim() == "2");
    // kubectl wants a terminal of its own before it asks for one there.
    let line = format!(
        "{} exec -it mixed -c linux -- /bin/sh -c 'test -t 1 && stty size && echo yes'",
        coracle_e2e::kubectl()?.display()
    );
    let terminal = coracle_e2e::succeed(cluster.command("script").args(["-qec", &line, "/dev/null"]))?;
    ensure!(terminal.contains("yes"), "{terminal}");

    // Files go in through one container and come out through the other.
    cluster.kubectl(&["cp", &input, "mixed:/data/copied", "-c", "wasm"])?;
    ensure!(exec("linux", &["cat", "/data/copied"])? == "one\ntwo\n");
    let back = cluster.data_dir().with_file_name("back").display().to_string();
    cluster.kubectl(&["cp", "mixed:/data/copied", &back, "-c", "linux"])?;
    ensure!(std::fs::read_to_string(&back)? == "one\ntwo\n");

    // What is written is seen as it is written.
    let mut attached = cluster.command(coracle_e2e::kubectl()?);
    attached.args(["attach", "mixed", "-c", "linux"]).stdout(std::process::Stdio::piped());
    let mut attached = attached.spawn()?;
    let stdout = attached.stdout.take().context("no stdout")?;
    let line = std::io::BufRead::lines(std::io::BufReader::new(stdout))
        .next()
        .context("attach showed nothing")??;
    let _ = attached.kill();
    let _ = attached.wait();
    ensure!(line.contains("tick"), "{line}");

    // A port of the pod on the client's side.
    let mut forward = cluster.command(coracle_e2e::kubectl()?);
    forward.args(["port-forward", "pod/mixed", "18080:8080"]).stdout(std::process::Stdio::piped());
    let mut forward = forward.spawn()?;
    let answered = eventually("the forwarded port answers", SOON, || {
        ensure!(cluster.curl("http://127.0.0.1:18080/")?.contains("hello from mixed"));
        // Again: one connection more over the same tunnel.
        Ok(cluster.curl("http://127.0.0.1:18080/")?.contains("hello from mixed"))
    });
    let _ = forward.kill();
    let _ = forward.wait();
    answered?;
    cluster.kubectl(&["delete", "pod", "mixed", "--timeout=60s"])?;
    cluster.stop()
}
