//! Several machines: pods reach pods of other nodes, and Services work on every node. Profile: routed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::eventually;
use coracle_e2e::machines::Machines;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// A pod of the guest `web` on a node.
fn web(name: &str, node: usize, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": format!("node-{node}"), "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "web", "image": "web:v1", "ports": [{"name": "http", "containerPort": 8080}],
            "env": [{"name": "POD", "value": name}],
        }]},
    })
}

fn ready(machines: &Machines, name: &str) -> Result<String> {
    machines
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")])
        .with_context(|| machines.logs())?;
    let pod = machines.get(&["pod", name])?;
    Ok(pod["status"]["podIP"].as_str().context("no podIP")?.to_owned())
}

/// Waits until a guest on this host's node is answered `expected` by a URL.
fn reaches(machines: &Machines, host: usize, pod: &str, url: &str, expected: &str) -> Result<()> {
    eventually(&format!("{pod} on host {host} is answered by {url}"), SOON, || {
        let answer = machines.host(host)?.curl(&format!("http://{pod}:8080/fetch?{url}"))?;
        ensure!(answer == format!("200 hello from {expected}\n"), "{answer}");
        Ok(true)
    })
}

/// The names of the pods that answer at a URL, as a host sees it.
fn answering(machines: &Machines, host: usize, url: &str) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    for _ in 0..24 {
        let answer = machines.host(host)?.curl(url)?;
        seen.insert(answer.trim().trim_start_matches("hello from ").to_owned());
    }
    Ok(seen)
}

/// Row: network: pods of two machines have unique addresses and reach each other; Services, NodePorts and names work on every node
#[test]
fn mission_m06_services_on_every_node() -> Result<()> {
    let mut machines = Machines::start(2, &[])?;
    machines.push("web", "web:v1")?;
    let labels = json!({"app": "web"});
    machines.apply(&[
        web("one", 1, labels.clone()),
        web("two", 2, labels.clone()),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "selector": labels,
                "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "two"},
            "spec": {"selector": {"app": "nobody"}, "ports": [{"port": 80}]}}),
    ])?;
    let (one, two) = (ready(&machines, "one")?, ready(&machines, "two")?);
    ensure!(one != two);
    // By address, both ways, and as the nodes see it.
    reaches(&machines, 1, &one, &format!("http://{two}:8080/"), "two")?;
    reaches(&machines, 2, &two, &format!("http://{one}:8080/"), "one")?;
    ensure!(machines.host(1)?.curl(&format!("http://{two}:8080/"))?.contains("two"));

    // The Service, from each node and from its pods, leads to pods of both nodes.
    let service = machines.get(&["service", "web"])?;
    let address = service["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    let both: BTreeSet<String> = ["one", "two"].map(String::from).into();
    for host in [1, 2] {
        eventually("the Service leads to both pods", SOON, || {
            Ok(answering(&machines, host, &format!("http://{address}/"))? == both)
        })
        .with_context(|| machines.logs())?;
    }
    for (host, pod) in [(1, &one), (2, &two)] {
        for name in [&address, "web", "web.default.svc.cluster.local"] {
            // A guest's connections are kept, so that it may well be led to one pod again and again.
            eventually(&format!("{name} answers a pod of host {host}"), SOON, || {
                let answer = machines.host(host)?.curl(&format!("http://{pod}:8080/fetch?http://{name}/"))?;
                Ok(both.contains(answer.trim().trim_start_matches("200 hello from ")))
            })?;
        }
    }
    // The NodePort of each node, for a machine that is no node.
    for node in [1, 2] {
        let url = format!("http://{}:30080/", machines.host(node)?.address);
        eventually("the NodePort leads to both pods", SOON, || Ok(answering(&machines, 0, &url)? == both))
            .with_context(|| machines.logs())?;
    }
    // Nobody serves it: refused at once.
    let nobody = machines.get(&["service", "two"])?;
    let nobody = nobody["spec"]["clusterIP"].as_str().context("no clusterIP")?.to_owned();
    let refused = machines.host(1)?.curl(&format!("http://{nobody}/"));
    ensure!(refused.as_ref().is_err_and(|e| format!("{e:#}").contains("(7)")), "{refused:?}");

    // An agent that is killed leaves the routes and tables; one that is stopped takes them along.
    machines.end("node-2", Signal::SIGKILL)?;
    ensure!(answering(&machines, 2, &format!("http://{address}/"))? == both);
    machines.node(2)?;
    machines.kubectl(&["delete", "pod", "one"])?;
    eventually("the Service leads to the pod that is left", SOON, || {
        Ok(answering(&machines, 2, &format!("http://{address}/"))? == ["two".to_owned()].into())
    })?;
    machines.end("node-2", Signal::SIGTERM)?;
    let left = machines.host(2)?.command("nft").args(["list", "ruleset"]).output()?;
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    ensure!(!left.contains("table ip coracle {"), "{left}");
    machines.stop()
}
