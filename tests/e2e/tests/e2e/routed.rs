//! Several machines: pods reach pods of other nodes, and Services work on every node. Profile: routed.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use coracle_e2e::machines::Machines;
use coracle_e2e::{Ended, SOON, eventually};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

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
        .with_context(|| {
            let described = machines.kubectl(&["describe", "pod", name]).unwrap_or_default();
            format!("{described}{}", machines.logs())
        })?;
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
fn mission_m06_services_on_every_node() -> Result<Ended> {
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

/// A pod of busybox on a node, which serves its name at port 8080.
fn linux(name: &str, node: usize, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": format!("node-{node}"), "terminationGracePeriodSeconds": 1, "containers": [{
            "name": "linux", "image": "busybox:v1",
            "command": ["/bin/sh", "-c", format!("echo hello from {name} > /tmp/index.html; exec httpd -f -p 8080 -h /tmp")],
        }]},
    })
}

/// What a Linux pod gets from a URL within two seconds.
fn wget(machines: &Machines, pod: &str, url: &str) -> Result<String> {
    let got =
        machines.kubectl(&["exec", pod, "--", "busybox", "timeout", "2", "wget", "-q", "-O", "-", url])?;
    Ok(got.trim().trim_start_matches("hello from ").to_owned())
}

fn policy(name: &str, selects: Value, spec: Value) -> Value {
    let mut object = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name}, "spec": {"podSelector": {"matchLabels": selects}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

/// Row: network: Linux and wasm pods of several machines: unique addresses, names, load balancers, and policies that cut and restore traffic
#[test]
fn mission_m19_policies_across_machines() -> Result<Ended> {
    let machines = Machines::start(2, &["--load-balancer-cidr=192.168.77.128/25"])?;
    machines.push("web", "web:v1")?;
    machines.push_busybox("busybox:v1")?;
    let balanced = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "db"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    machines.apply(&[
        linux("db", 1, json!({"app": "db"})),
        linux("near", 1, json!({"role": "friend"})),
        linux("far", 2, json!({"role": "friend"})),
        linux("stranger", 2, json!({})),
        linux("neighbour", 1, json!({})),
        web("wasm", 2, json!({"app": "wasm"})),
        balanced,
    ])?;
    let names = ["db", "near", "far", "stranger", "neighbour", "wasm"];
    let mut addresses = Vec::new();
    for name in names {
        addresses.push(ready(&machines, name)?);
    }
    let unique: BTreeSet<&String> = addresses.iter().collect();
    ensure!(unique.len() == names.len(), "{addresses:?}");
    let (db, wasm) = (&addresses[0], &addresses[5]);
    let to_db = [
        format!("http://{db}:8080/"),
        "http://front/".into(),
        "http://front.default.svc.cluster.local/".into(),
    ];
    let open = |from: &str| {
        for url in &to_db {
            eventually(&format!("{from} reaches {url}"), SOON, || Ok(wget(&machines, from, url)? == "db"))
                .with_context(|| machines.logs())?;
        }
        anyhow::Ok(())
    };
    for from in ["near", "far", "stranger", "neighbour"] {
        open(from)?;
    }
    let to_wasm = format!("http://{wasm}:8080/");
    eventually("a Linux pod reaches a wasm pod", SOON, || Ok(wget(&machines, "far", &to_wasm)? == "wasm"))?;
    reaches(&machines, 2, wasm, &format!("http://{db}:8080/"), "db")?;
    let resolved = machines.kubectl(&["exec", "far", "--", "nslookup", "front.default.svc.cluster.local"])?;
    let front = machines.get(&["service", "front"])?;
    ensure!(resolved.contains(front["spec"]["clusterIP"].as_str().context("clusterIP")?), "{resolved}");

    // The load balancer's address answers on the machines' link.
    let balancer =
        front["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().context("no address")?.to_owned();
    eventually("the load balancer answers", SOON, || {
        Ok(machines.host(0)?.curl(&format!("http://{balancer}/"))?.contains("db"))
    })
    .with_context(|| machines.logs())?;

    let from_friends = json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]});
    machines.apply(&[
        policy("db", json!({"app": "db"}), from_friends.clone()),
        policy("wasm", json!({"app": "wasm"}), from_friends),
    ])?;
    let cut = |from: &str, url: &str| {
        eventually(&format!("{from} is cut off from {url}"), SOON, || Ok(wget(&machines, from, url).is_err()))
    };
    cut("stranger", &to_db[0])?;
    cut("stranger", &to_db[1])?;
    cut("neighbour", &to_db[0])?;
    cut("stranger", &to_wasm)?;
    open("near")?;
    open("far")?;
    ensure!(wget(&machines, "far", &to_wasm)? == "wasm");
    machines.kubectl(&["delete", "networkpolicy", "db", "wasm"])?;
    open("stranger")?;
    open("neighbour")?;
    machines.stop()
}

/// Row: network: a CNI configuration of a bridge is honoured for Linux pods
#[test]
fn mission_m19_a_cni_configuration_is_honoured() -> Result<Ended> {
    let path = coracle_e2e::root().join("tests/e2e/manifests/13-cni.json");
    let machines = Machines::start_with_cni(1, &[], Some(&std::fs::read_to_string(path)?))?;
    machines.push_busybox("busybox:v1")?;
    machines.apply(&[linux("one", 1, json!({})), linux("two", 1, json!({}))])?;
    let (one, two) = (ready(&machines, "one")?, ready(&machines, "two")?);
    ensure!(one != two && [&one, &two].iter().all(|ip| ip.starts_with("10.22.")), "{one} {two}");
    eventually("one reaches the other", SOON, || {
        Ok(wget(&machines, "one", &format!("http://{two}:8080/"))? == "two")
    })?;
    let bridge = machines.host(1)?.command("ip").args(["-4", "address", "show", "cni0"]).output()?;
    let bridge = String::from_utf8_lossy(&bridge.stdout).into_owned();
    ensure!(bridge.contains("10.22.0.1/16"), "{bridge}");
    machines.stop()
}
