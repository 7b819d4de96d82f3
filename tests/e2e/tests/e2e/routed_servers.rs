//! Three servers and two nodes on five machines: any one server may be lost, in any way. Profile: routed.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_e2e::machines::Machines;
use coracle_e2e::netns::Host;
use coracle_e2e::{Ended, SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Writes go on within this time after the leader was lost.
const FAILOVER: Duration = Duration::from_secs(5);

fn web(name: &str, node: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": format!("node-{node}"), "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "web:v1", "ports": [{"name": "http", "containerPort": 8080}],
            "env": [{"name": "POD", "value": name}],
        }]},
    })
}

/// The index of the server that leads, as another sees it.
fn leader(machines: &Machines, at: usize) -> Result<usize> {
    let mut found = None;
    eventually("there is a leader", SOON, || {
        let said = machines.kubectl_at(at, &["get", "--raw", "/coracle/members"])?;
        let said: Value = serde_json::from_str(&said)?;
        let all = said["members"].as_array().context("no members")?;
        let leads = all.iter().find(|member| member["leader"] == true);
        let address = leads.and_then(|member| member["address"].as_str()).unwrap_or_default().to_owned();
        for index in 0..3 {
            let host = machines.host(machines.server_host(index))?;
            if address.starts_with(&format!("{}:", host.address)) {
                found = Some(index);
            }
        }
        Ok(found.is_some())
    })?;
    found.context("no leader")
}

/// Writes through a server until it succeeds; how long that took.
fn write(machines: &Machines, at: usize, name: &str) -> Result<Duration> {
    let started = Instant::now();
    eventually(&format!("{name} is written at server {at}"), SOON, || {
        let made = ["create", "configmap", name, "--from-literal=a=b", "--request-timeout=5s"];
        match machines.kubectl_at(at, &made) {
            Ok(_) => Ok(true),
            Err(error) if format!("{error:#}").contains("already exists") => Ok(true),
            Err(error) => Err(error),
        }
    })?;
    Ok(started.elapsed())
}

fn holds(machines: &Machines, at: usize, name: &str) -> Result<()> {
    eventually(&format!("server {at} has {name}"), SOON, || {
        machines.kubectl_at(at, &["get", "configmap", name, "--request-timeout=5s"]).map(|_| true)
    })
    .with_context(|| machines.logs())
}

/// A new pod on each node gets ready, as this server sees it: so the nodes hear it.
fn nodes_work(machines: &Machines, at: usize, turn: usize) -> Result<()> {
    for node in [1, 2] {
        let name = format!("web-{turn}-{node}");
        let file = std::env::temp_dir().join(format!("coracle-{}-{name}.json", std::process::id()));
        std::fs::write(&file, web(&name, node).to_string())?;
        let made = machines.kubectl_at(at, &["create", "-f", &file.display().to_string()]);
        std::fs::remove_file(&file)?;
        made?;
        machines
            .kubectl_at(at, &["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")])
            .with_context(|| format!("turn {turn}, node {node}: {}", machines.logs()))?;
    }
    Ok(())
}

/// Nothing passes between a host and these any more, until [`heal`].
fn cut(host: &Host, others: &[String]) -> Result<()> {
    let others = others.join(", ");
    let script = format!(
        "table ip cut {{
            chain in {{ type filter hook input priority -300; ip saddr {{ {others} }} drop; }}
            chain out {{ type filter hook output priority -300; ip daddr {{ {others} }} drop; }}
        }}"
    );
    coracle_e2e::succeed(host.command("nft").arg(script)).map(drop)
}

fn heal(host: &Host) -> Result<()> {
    coracle_e2e::succeed(host.command("nft").args(["delete", "table", "ip", "cut"])).map(drop)
}

/// Asks pods again and again; what went wrong.
struct Asking {
    stop: Arc<AtomicBool>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<std::thread::JoinHandle<u32>>,
}

impl Asking {
    fn start(machines: &Machines, pods: &[(usize, String)]) -> Result<Self> {
        let (stop, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut threads = Vec::new();
        for (host, url) in pods {
            let (stop, failures) = (stop.clone(), failures.clone());
            let (host, url) = (machines.host(*host)?.clone(), url.clone());
            threads.push(std::thread::spawn(move || {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) {
                    match host.curl(&url) {
                        Ok(_) => answers += 1,
                        Err(error) => failures.lock().expect("a list").push(format!("{url}: {error:#}")),
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                answers
            }));
        }
        Ok(Self { stop, failures, threads })
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let answers = thread.join().map_err(|_| anyhow::anyhow!("a thread failed"))?;
            ensure!(answers > 10, "only {answers} answers");
        }
        let failures = self.failures.lock().expect("a list");
        ensure!(failures.is_empty(), "pods did not answer: {failures:?}");
        Ok(())
    }
}

/// Row: high availability: three servers on machines of their own: one killed, cut off, or cut off from the other servers alone: writes go on within seconds, nodes go on elsewhere, pods answer throughout
#[test]
fn mission_m26_any_server_of_three_machines_is_lost() -> Result<Ended> {
    let mut machines = Machines::start_servers(3, 2, &[])?;
    machines.push("web", "web:v1")?;
    machines.apply(&[web("one", 1), web("two", 2)])?;
    machines.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/one", "pod/two"])?;
    let mut urls = Vec::new();
    for (host, pod) in [(2, "one"), (1, "two")] {
        let pod = machines.get(&["pod", pod])?;
        let address = pod["status"]["podIP"].as_str().context("no podIP")?.to_owned();
        urls.push((host, format!("http://{address}:8080/")));
    }
    let asking = Asking::start(&machines, &urls)?;

    // The first server, which the nodes joined and are connected to, no longer reaches the other servers, but nodes and clients
    // reach it.
    let mut watch = watch(&machines, 0)?;
    let others: Vec<String> = [1, 2]
        .iter()
        .map(|index| Ok(machines.host(machines.server_host(*index))?.address.clone()))
        .collect::<Result<_>>()?;
    cut(machines.host(0)?, &others)?;
    let took = write(&machines, 1, "after-partition")?;
    eprintln!("writes went on {took:?} after a server was cut off from the others");
    nodes_work(&machines, 1, 1)?;
    eventually("the watch at the server that was cut off ends", SOON, || Ok(watch.try_wait()?.is_some()))?;
    let ready = machines.kubectl_at(0, &["get", "--raw", "/readyz", "--request-timeout=10s"]);
    ensure!(ready.is_err(), "a server that was cut off says that it is ready");
    heal(machines.host(0)?)?;
    holds(&machines, 0, "after-partition")?;
    eventually("it is ready again", SOON, || {
        machines.kubectl_at(0, &["get", "--raw", "/readyz"]).map(|_| true)
    })?;

    // The leader is killed.
    let first = leader(&machines, 0)?;
    let other = (first + 1) % 3;
    machines.end(&Machines::server(first), Signal::SIGKILL)?;
    let took = write(&machines, other, "after-kill")?;
    eprintln!("writes went on {took:?} after the leader was killed");
    ensure!(took < FAILOVER, "writes went on only after {took:?}; {}", machines.logs());
    nodes_work(&machines, other, 2)?;
    machines.serve(first, &[])?;
    holds(&machines, first, "after-kill")?;

    // The leader's cable is pulled.
    let second = leader(&machines, other)?;
    let other = (second + 1) % 3;
    machines.host(machines.server_host(second))?.set_connected(false)?;
    let took = write(&machines, other, "after-cut")?;
    eprintln!("writes went on {took:?} after the leader was cut off");
    ensure!(took < FAILOVER, "writes went on only after {took:?}; {}", machines.logs());
    nodes_work(&machines, other, 3)?;
    machines.host(machines.server_host(second))?.set_connected(true)?;
    holds(&machines, second, "after-cut")?;

    asking.end()?;
    for index in 0..3 {
        ensure!(machines.runs(&Machines::server(index))?, "server {index} ended; {}", machines.logs());
    }
    machines.stop()
}

/// A client that watches at a server.
fn watch(machines: &Machines, at: usize) -> Result<Child> {
    let mut command = machines.host(machines.server_host(at))?.command(coracle_e2e::kubectl()?);
    command.env("KUBECONFIG", machines.kubeconfig(at)).args(["get", "configmaps", "--watch-only"]);
    Ok(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}
