//! Two nodes on one host. Profile: loopback.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use coracle_e2e::nodes::Nodes;
use coracle_e2e::servers::Servers;
use coracle_e2e::{Ended, curl, eventually};
use serde_json::{Value, json};

use super::{SOON, fetch, reaches, web};

/// The pods that answer at a URL, by many connections.
fn answering(url: &str) -> Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        seen.insert(curl(url)?.trim().trim_start_matches("hello from ").to_owned());
    }
    Ok(seen)
}

/// Row: network: two nodes of one host share Service addresses: whoever answers leads to pods of both, and keeps to policies
#[test]
fn two_nodes_share_service_addresses() -> Result<Ended> {
    let mut nodes = Nodes::join(Servers::start(1)?, 2)?;
    let kubectl = |args: &[&str]| nodes.servers.kubectl(0, args);
    let apply = |objects: &[Value]| -> Result<()> {
        let path = nodes.servers.dir().join("objects.json");
        std::fs::write(&path, json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
        kubectl(&["apply", "-f", &path.display().to_string()]).map(drop)
    };
    let built = coracle_e2e::guest_file("web")?;
    let copy = nodes.servers.dir().join("web.wasm");
    std::fs::copy(built, &copy)?;
    nodes.servers.coracle(0, &["image", "push", &copy.display().to_string(), "web:v1"])?;
    let on = |name: &str, node: usize, app: &str| {
        web("default", name, json!({"app": app}), json!({"nodeName": Nodes::name(node)}))
    };
    apply(&[
        on("one", 0, "web"),
        on("two", 1, "web"),
        on("asks", 1, "asks"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "selector": {"app": "web"}, "ports": [{"port": 8080, "nodePort": 30080}]}}),
    ])?;
    let mut addresses = Vec::new();
    for pod in ["one", "two", "asks"] {
        kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{pod}")])
            .with_context(|| nodes.logs(0) + &nodes.logs(1))?;
        addresses.push(kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?);
    }
    let unique: BTreeSet<&String> = addresses.iter().collect();
    ensure!(unique.len() == 3, "{addresses:?}");
    let address = kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?;
    let both: BTreeSet<String> = ["one", "two"].map(String::from).into();
    let hosts = [
        address.clone() + ":8080",
        nodes.servers.slot().node(0) + ":30080",
        nodes.servers.slot().node(1) + ":30080",
    ];
    for host in &hosts {
        eventually(&format!("{host} leads to pods of both nodes"), SOON, || {
            Ok(answering(&format!("http://{host}/"))? == both)
        })?;
    }
    // A policy of the first node's pod holds, whichever node's listener is asked: it sees who asks.
    let asks = addresses.get(2).context("no address")?;
    let one = addresses.first().context("no address")?;
    reaches(asks, &format!("http://{one}:8080/"), "one")?;
    apply(&[
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}),
    ])?;
    eventually("the policy holds on another node", SOON, || {
        Ok(fetch(asks, &format!("http://{one}:8080/")).is_err() && fetch(asks, "http://web:8080/").is_err())
    })?;
    ensure!(answering(&format!("http://{address}:8080/"))? == both, "the node itself always may");
    nodes.end()
}
