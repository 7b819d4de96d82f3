//! What a pod of Linux containers asks of its node and a wasm pod cannot: signals, shared processes, system calls.
//! Profile: routed.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, eventually};
use serde_json::{Value, json};

use super::{SOON, apply, cluster_with, pod, ready, says};

/// An OCI runtime whose CRIU works on every kernel: that is stood in for.
const CHECKPOINTS: &str = r#"#!/bin/sh
case " $* " in *" checkpoint "*) ;; *) exec runc "$@" ;; esac
while [ "$1" != --image-path ]; do shift; done
mkdir -p "$2" && echo pages > "$2/pages-1.img"
"#;

fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": "busybox:v1", "command": ["/bin/sh", "-c", script]})
}

/// Row: Linux containers: stop signals, a shared process namespace, seccomp profiles, a probe's own grace, processors and memory of their own, checkpoints
#[test]
fn linux_pods_are_promised_signals_processes_and_profiles() -> Result<Ended> {
    let dir = tempfile::tempdir()?;
    let runtime = dir.path().join("runtime.sh");
    std::fs::write(&runtime, CHECKPOINTS)?;
    std::fs::set_permissions(&runtime, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let runtime = format!("--oci-runtime={}", runtime.display());
    let mut cluster = cluster_with(&[
        "--cpu-manager-policy=static",
        "--kube-reserved=cpu=500m,memory=100Mi",
        "--memory-manager-policy=Static",
        "--reserved-memory=0:memory=200Mi",
        "--topology-manager-policy=best-effort",
        "--topology-manager-scope=pod",
        "--seccomp-default",
        &runtime,
    ])?;
    let profiles = cluster.data_dir().join("node/seccomp/own");
    std::fs::create_dir_all(&profiles)?;
    let own = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
    std::fs::write(profiles.join("no-folders.json"), own.to_string())?;

    // Told by the pod's signal; without a word of the pod, by what its image says.
    let notes = cluster.data_dir().with_file_name("notes");
    let mut told =
        shell("c", "trap 'echo told > /notes/told; exit 0' USR1; echo up; while true; do sleep 0.1; done");
    told["lifecycle"] = json!({"stopSignal": "SIGUSR1"});
    told["volumeMounts"] = json!([{"name": "notes", "mountPath": "/notes"}]);
    let host_path = json!({"path": notes, "type": "DirectoryOrCreate"});
    let told = json!({"os": {"name": "linux"}, "terminationGracePeriodSeconds": 60, "containers": [told],
        "volumes": [{"name": "notes", "hostPath": host_path}]});

    let beside = "until grep -q httpd /proc/[0-9]*/comm; do sleep 0.1; done; cat /proc/[0-9]*/comm; echo listed; exec sleep 100000";
    let shared = json!({"shareProcessNamespace": true, "terminationGracePeriodSeconds": 1,
        "containers": [shell("one", "exec httpd -f -p 9999 -h /tmp"), shell("two", beside)]});

    let question =
        "grep Seccomp: /proc/self/status; busybox mkdir /tmp/x && echo made; echo done; exec sleep 100000";
    let profiled = |profile: Value| {
        let mut container = shell("c", question);
        container["securityContext"] = json!({"seccompProfile": profile});
        json!({"terminationGracePeriodSeconds": 1, "containers": [container]})
    };
    let mut deaf = shell("c", "trap '' TERM KILL; while true; do sleep 0.1; done");
    deaf["lifecycle"] = json!({"stopSignal": "SIGTERM"});
    deaf["livenessProbe"] = json!({"exec": {"command": ["/bin/cat", "/absent"]}, "periodSeconds": 1, "failureThreshold": 1,
        "terminationGracePeriodSeconds": 1});
    let deaf = json!({"os": {"name": "linux"}, "terminationGracePeriodSeconds": 600, "containers": [deaf]});
    apply(
        &cluster,
        &[
            pod("told", told),
            pod("shared", shared),
            pod("default", profiled(json!({"type": "RuntimeDefault"}))),
            pod("unnamed", profiled(Value::Null)),
            pod("free", profiled(json!({"type": "Unconfined"}))),
            pod("own", profiled(json!({"type": "Localhost", "localhostProfile": "own/no-folders.json"}))),
            pod("lost", profiled(json!({"type": "Localhost", "localhostProfile": "own/none.json"}))),
            pod("deaf", deaf),
            pod(
                "wasm",
                json!({"containers": [{"name": "c", "image": "web:v1", "ports": [{"containerPort": 8080}]}]}),
            ),
        ],
    )?;
    ready(&cluster, "told")?;
    ready(&cluster, "shared")?;
    let signal = |name: &str| -> Result<Value> {
        Ok(cluster.get(&["pod", name])?["status"]["containerStatuses"][0]["stopSignal"].take())
    };
    ensure!(
        signal("told")? == "SIGUSR1" && signal("shared")? == "SIGKILL",
        "{} {}",
        signal("told")?,
        signal("shared")?
    );
    says(&cluster, "told", "c", "up")?;
    cluster.kubectl(&["delete", "pod", "told", "--timeout=20s"])?;
    ensure!(std::fs::read_to_string(notes.join("told"))? == "told\n");

    processes(&cluster)?;
    says(&cluster, "free", "c", "done")?;
    ready(&cluster, "wasm")?;
    processors(&cluster)?;
    checkpoints(&cluster)?;
    for (name, filter, made) in [
        ("default", "Seccomp:\t2", true),
        ("unnamed", "Seccomp:\t2", true),
        ("free", "Seccomp:\t0", true),
        ("own", "Seccomp:\t2", false),
    ] {
        says(&cluster, name, "c", "done")?;
        let log = cluster.kubectl(&["logs", name])?;
        ensure!(log.contains(filter) && log.contains("made\n") == made, "{name}: {log}");
    }
    eventually("a profile that is not there is named", SOON, || {
        let waiting =
            cluster.get(&["pod", "lost"])?["status"]["containerStatuses"][0]["state"]["waiting"].take();
        let words = waiting["message"].as_str().unwrap_or_default().to_owned();
        ensure!(
            waiting["reason"] == "CreateContainerError" && words.contains("seccomp/own/none.json"),
            "{waiting}"
        );
        Ok(true)
    })?;
    // Its probe's grace is one second, the pod's ten minutes.
    eventually("the deaf one is restarted", SOON, || {
        let status = cluster.get(&["pod", "deaf"])?["status"]["containerStatuses"][0].take();
        let ended = &status["lastState"]["terminated"];
        ensure!(status["restartCount"].as_i64() >= Some(1) && ended["exitCode"] == 137, "{status}");
        Ok(true)
    })?;
    cluster.kubectl(&["delete", "pod", "--all", "--timeout=60s", "--grace-period=1"])?;
    cluster.stop()
}

/// Containers of a pod see each other's processes, end each other, and are restarted one by one.
fn processes(cluster: &Cluster) -> Result<()> {
    says(cluster, "shared", "two", "listed")?;
    let listed = cluster.kubectl(&["logs", "shared", "-c", "two"])?;
    ensure!(listed.starts_with("pause\n") && listed.contains("httpd\n"), "{listed}");
    // Nothing of the host is behind the pod's first process, whoever looks.
    let mut find = std::process::Command::new("find");
    let found = coracle_e2e::succeed(find.arg(cluster.data_dir()).args(["-name", "pause.pid"]))?;
    let pid = std::fs::read_to_string(found.trim())?;
    let entries: Vec<_> = std::fs::read_dir(format!("/proc/{}/root", pid.trim()))?.collect();
    ensure!(entries.is_empty(), "{entries:?}");
    let kill = "for p in /proc/[0-9]*; do if grep -q httpd $p/comm; then kill -9 ${p#/proc/}; fi; done";
    cluster.kubectl(&["exec", "shared", "-c", "two", "--", "/bin/sh", "-c", kill])?;
    let counts = || -> Result<Vec<i64>> {
        let status = cluster.get(&["pod", "shared"])?["status"]["containerStatuses"].take();
        let all = status.as_array().context("no statuses")?.iter();
        Ok(all.map(|s| s["restartCount"].as_i64().unwrap_or(0)).collect())
    };
    eventually("the one that was killed is restarted", SOON, || Ok(counts()? == [1, 0]))?;
    ready(cluster, "shared").map(drop)
}

/// Who asks for whole processors in a Guaranteed pod has them alone; the others share the rest, and get them back.
fn processors(cluster: &Cluster) -> Result<()> {
    let told = |pod: &str, key: &str| -> Result<String> {
        let status = cluster.kubectl(&["exec", pod, "--", "grep", key, "/proc/self/status"])?;
        Ok(status.split_whitespace().last().unwrap_or_default().to_owned())
    };
    let allowed = |pod: &str| told(pod, "Cpus_allowed_list");
    let before = allowed("free")?;
    let mut exact = shell("c", "exec sleep 100000");
    exact["resources"] = json!({"limits": {"cpu": "1", "memory": "32Mi"}});
    apply(cluster, &[pod("exact", json!({"terminationGracePeriodSeconds": 1, "containers": [exact]}))])?;
    ready(cluster, "exact")?;
    let own = allowed("exact")?;
    ensure!(own.parse::<u32>().is_ok_and(|cpu| cpu > 0), "{own} is not one processor, or the reserved one");
    // What others share is updated while they run.
    let file = cluster.data_dir().join("node/cpu_manager_state");
    let state = || -> Result<Value> { Ok(serde_json::from_str(&std::fs::read_to_string(&file)?)?) };
    let memory = cluster.data_dir().join("node/memory_manager_state");
    let memory = || -> Result<Value> { Ok(serde_json::from_str(&std::fs::read_to_string(&memory)?)?) };
    let uid = cluster.get(&["pod", "exact"])?["metadata"]["uid"].take();
    let block = memory()?["entries"][uid.as_str().unwrap_or_default()]["c"][0].take();
    ensure!(block == json!({"numaAffinity": [0], "type": "memory", "size": 32 << 20}), "{}", memory()?);
    ensure!(told("exact", "Mems_allowed_list")? == "0");
    let shared = state()?["defaultCpuSet"].as_str().context("no shared processors")?.to_owned();
    ensure!(shared != before, "{shared}");
    eventually("the others are elsewhere", SOON, || Ok(allowed("free")? == shared))?;
    cluster.kubectl(&["delete", "pod", "exact", "--timeout=30s"])?;
    eventually("the others have it back", SOON, || Ok(allowed("free")? == before))?;
    ensure!(state()?["entries"] == json!({}), "{}", state()?);
    ensure!(memory()?["entries"] == json!({}), "{}", memory()?);
    Ok(())
}

/// The node's own endpoint: files, or why there is none.
fn checkpoints(cluster: &Cluster) -> Result<()> {
    let body = cluster.file("nothing.json", "{}")?;
    let path = |of: &str| format!("/api/v1/nodes/node-1/proxy/checkpoint/default/{of}");
    let refused = |of: &str| cluster.kubectl_fails(&["create", "--raw", &path(of), "-f", &body]);
    let wasm = refused("wasm/c")?;
    ensure!(
        wasm.contains("checkpointing of default/wasm/c failed") && wasm.contains("is a wasm container"),
        "{wasm}"
    );
    ensure!(refused("none/c")?.contains("pod does not exist"));
    ensure!(refused("free/none")?.contains("container none does not exist"));
    // The second one may be of the same second, and of the same name then: the first one stays.
    let mut files = Vec::new();
    for query in ["?timeout=9223372036854775807", ""] {
        let mut command = cluster.command(coracle_e2e::kubectl()?);
        let out = command.args(["create", "--raw", &(path("free/c") + query), "-f", &body]).output()?;
        if out.status.success() {
            let answer: Value = serde_json::from_slice(&out.stdout)?;
            files.push(answer["items"][0].as_str().context("no file")?.to_owned());
        } else {
            ensure!(
                coracle_e2e::shown(&out).contains("exists") && !files.is_empty(),
                "{}",
                coracle_e2e::shown(&out)
            );
        }
    }
    for file in files {
        ensure!(file.contains("/checkpoints/checkpoint-free_default-c-"), "{file}");
        let mut tar = std::process::Command::new("sh");
        let script =
            format!("tar -xOf {file} checkpoint/pages-1.img && tar -xOf {file} rootfs-diff.tar | tar -tf -");
        let held = coracle_e2e::succeed(tar.args(["-c", &script]))?;
        ensure!(held.starts_with("pages\n") && held.contains("tmp/x"), "{held}");
    }
    Ok(())
}
