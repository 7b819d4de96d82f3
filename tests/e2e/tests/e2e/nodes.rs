//! Nodes that join with tokens, and what happens when one is lost. Profile: loopback.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::nodes::Nodes;
use coracle_e2e::servers::Servers;
use coracle_e2e::{Cluster, Ended, Profile, SOON, curl, eventually, guest_file, succeed};
use serde_json::Value;

fn deploy(nodes: &Nodes, replicas: usize) -> Result<()> {
    let servers = &nodes.servers;
    let copy = servers.dir().join("hello.wasm");
    std::fs::copy(guest_file("hello")?, &copy)?;
    servers.coracle(0, &["image", "push", &copy.display().to_string(), "hello:v1"])?;
    let replicas = format!("--replicas={replicas}");
    servers.kubectl(0, &["create", "deployment", "web", "--image=hello:v1", &replicas])?;
    servers
        .kubectl(0, &["rollout", "status", "deploy/web", "--timeout=90s"])
        .with_context(|| nodes.logs(0) + &nodes.logs(1))
        .map(drop)
}

/// The ready pods of the Deployment: node, address.
fn ready(servers: &Servers, server: usize) -> Result<Vec<(String, String)>> {
    let list = servers.kubectl(server, &["get", "pods", "-l", "app=web", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = list["items"].as_array().into_iter().flatten().filter(is_ready);
    Ok(pods.map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["status"]["podIP"]))).collect())
}

/// Row: nodes: joining with a token: certificates requested, approved and issued; a Deployment spreads; logs over verified TLS; a restart needs no token
#[test]
fn mission_m28_nodes_join_with_tokens() -> Result<Ended> {
    let mut nodes = Nodes::join(Servers::start(1)?, 2)?;
    deploy(&nodes, 4)?;
    let servers = &nodes.servers;
    let pods = ready(servers, 0)?;
    let on: BTreeSet<&str> = pods.iter().map(|(node, _)| node.as_str()).collect();
    ensure!(on.len() == 2, "all pods are on {on:?}");
    for (_, address) in &pods {
        ensure!(!curl(&format!("http://{address}:8080/"))?.is_empty());
    }
    let requests = servers.kubectl(0, &["get", "csr"])?;
    for signer in ["kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"] {
        let lines = requests.lines().filter(|l| l.contains(signer) && l.contains("Approved,Issued"));
        ensure!(lines.count() == 2, "{requests}");
    }
    // The API server checks the node's certificate when it asks for logs.
    servers.kubectl(0, &["logs", "deploy/web"])?;
    // A token that is not known is refused, and so is another cluster's authority.
    let join = servers.coracle(0, &["token", "create"])?;
    let good: Vec<&str> = join.split_whitespace().skip(1).collect();
    let try_join = |args: &[&str]| {
        let root = servers.dir().join("stranger").display().to_string();
        let mut command = servers.command("timeout");
        command.arg("20").arg(servers.binary()).args(args).args(["--name=stranger", "--root-dir", &root]);
        command.args(["--runtime-endpoint=unix:///nowhere", "--node-ip"]).arg(servers.slot().node(9));
        let out = command.output()?;
        anyhow::Ok((out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned()))
    };
    let zero = format!("sha256:{}", "0".repeat(64));
    let other: Vec<&str> =
        good.iter().map(|a| if a.starts_with("sha256:") { zero.as_str() } else { a }).collect();
    let (joined, said) = try_join(&other)?;
    ensure!(!joined && said.contains("somebody in between"), "{said}");
    let unknown: Vec<&str> = good
        .iter()
        .map(|a| if a.contains('.') && a.len() == 23 { "aaaaaa.aaaaaaaaaaaaaaaa" } else { a })
        .collect();
    let (joined, said) = try_join(&unknown)?;
    ensure!(!joined && said.contains("Unauthorized"), "{said}");
    // What it got by joining is enough for the next start.
    nodes.kill(1)?;
    nodes.start(1, &[])?;
    let servers = &nodes.servers;
    eventually("its pods run again", Duration::from_secs(60), || Ok(ready(servers, 0)?.len() == 4))
        .with_context(|| nodes.logs(1))?;
    nodes.end()
}

/// Row: nodes: a node restricted to its own: neither other nodes' Secrets nor other nodes' objects, and no token for an account that it does not run
#[test]
fn mission_m05_a_node_may_do_only_what_is_its_own() -> Result<Ended> {
    let mut nodes = Nodes::join(Servers::start(1)?, 1)?;
    let servers = &nodes.servers;
    let pki = servers.dir().join("node-1/agent/pki");
    let as_node = |args: &[&str]| {
        let flag = |name: &str, file: &str| format!("--{name}={}", pki.join(file).display());
        let mut command = servers.command(coracle_e2e::kubectl()?);
        command.arg("--kubeconfig=/dev/null").arg(format!("--server={}", servers.url(0)));
        command.args([flag("certificate-authority", "ca.crt"), flag("client-certificate", "client.crt")]);
        command.arg(flag("client-key", "client.key")).args(args);
        let out = command.output()?;
        anyhow::Ok((out.status.success(), coracle_e2e::shown(&out)))
    };
    servers.kubectl(0, &["create", "secret", "generic", "foreign", "--from-literal=a=b"])?;
    servers.kubectl(0, &["create", "serviceaccount", "robot"])?;
    let refused = |args: &[&str], words: &str| {
        let (done, said) = as_node(args)?;
        ensure!(!done && said.contains(words), "{args:?}: {said}");
        Ok(())
    };
    let (seen, said) = as_node(&["get", "node", "node-1"])?;
    ensure!(seen, "{said}");
    refused(&["get", "secrets"], "User \"system:node:node-1\" cannot list resource \"secrets\"")?;
    refused(&["get", "secret", "foreign"], "cannot get resource \"secrets\"")?;
    refused(&["create", "token", "robot"], "cannot create resource \"serviceaccounts/token\"")?;
    refused(
        &["label", "node", "node-1", "node-role.kubernetes.io/control-plane="],
        "is not allowed to modify labels",
    )?;
    refused(&["create", "ns", "mine"], "cannot create resource \"namespaces\"")?;
    let stranger = "apiVersion: v1\nkind: Node\nmetadata: {name: node-9}\n";
    let file = servers.dir().join("node-9.yaml");
    std::fs::write(&file, stranger)?;
    let file = file.display().to_string();
    refused(&["create", "-f", &file], "node \"node-1\" is not allowed to modify node \"node-9\"")?;
    // A pod that is bound here and mounts the Secret opens it.
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  nodeName: node-1\n  containers: [{name: c, image: 'none:v1'}]\n  volumes: [{name: s, secret: {secretName: foreign}}]\n";
    let file = servers.dir().join("pod.yaml");
    std::fs::write(&file, pod)?;
    servers.kubectl(0, &["create", "-f", &file.display().to_string()])?;
    let (seen, said) = as_node(&["get", "secret", "foreign"])?;
    ensure!(seen, "{said}");
    servers.kubectl(0, &["delete", "pod", "p", "--grace-period=0", "--force"])?;
    refused(&["get", "secret", "foreign"], "cannot get resource \"secrets\"")?;
    nodes.end()
}

/// Row: nodes: a lost node: unreachable after the grace period, its pods evicted and made anew elsewhere; lost servers do not stop nodes
#[test]
fn mission_m04_pods_of_a_lost_node_move() -> Result<Ended> {
    let flags = [
        "--node-monitor-grace-period=6",
        "--default-unreachable-toleration-seconds=3",
        "--default-not-ready-toleration-seconds=3",
    ];
    let mut nodes = Nodes::join(Servers::start_with(1, &flags)?, 2)?;
    deploy(&nodes, 4)?;
    let lost = Nodes::name(1);
    ensure!(ready(&nodes.servers, 0)?.iter().any(|(node, _)| *node == lost));
    nodes.kill(1)?;
    let servers = &nodes.servers;
    let mut last = Vec::new();
    eventually("every pod runs on the other node", Duration::from_secs(90), || {
        last = ready(servers, 0)?;
        Ok(last.len() == 4 && last.iter().all(|(node, _)| *node != lost))
    })
    .with_context(|| format!("{last:?} {}", servers.logs()))?;
    let taints = servers.kubectl(0, &["get", "node", &lost, "-o", "jsonpath={.spec.taints[*].key}"])?;
    ensure!(taints.contains("node.kubernetes.io/unreachable"), "{taints}");
    for (_, address) in ready(servers, 0)? {
        succeed(servers.command("curl").args(["-sf", &format!("http://{address}:8080/")]))?;
    }
    nodes.end()
}

/// Row: node: monitoring tools read a node at its own port with their account's token, and what their role grants
/// Profile: loopback
#[test]
fn a_monitoring_tool_reads_a_node_with_its_token() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.kubectl(&["create", "serviceaccount", "monitor"])?;
    let rights = ["--verb=get", "--resource=nodes/metrics,nodes/stats"];
    cluster.kubectl(&[&["create", "clusterrole", "monitor"], &rights[..]].concat())?;
    let whom = ["--clusterrole=monitor", "--serviceaccount=default:monitor"];
    cluster.kubectl(&[&["create", "clusterrolebinding", "monitor"], &whom[..]].concat())?;
    let token = cluster.kubectl(&["create", "token", "monitor"])?;
    let node = cluster.get(&["nodes"])?["items"][0].take();
    let address = node["status"]["addresses"][0]["address"].as_str().context("an address")?;
    let port = &node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"];
    let ask = |path: &str, token: Option<&str>| {
        let mut curl = cluster.command("curl");
        curl.args([
            "-sk",
            "--max-time",
            "10",
            "-w",
            "\n%{http_code}",
            &format!("https://{address}:{port}{path}"),
        ]);
        if let Some(token) = token {
            curl.args(["-H", &format!("Authorization: Bearer {}", token.trim())]);
        }
        let text = succeed(&mut curl)?;
        let (body, code) = text.trim_end().rsplit_once('\n').context("a status")?;
        anyhow::Ok((code.to_owned(), body.to_owned()))
    };
    eventually("the role is known", SOON, || Ok(ask("/metrics", Some(&token))?.0 == "200"))?;
    let (code, summary) = ask("/stats/summary", Some(&token))?;
    let summary: Value = serde_json::from_str(&summary).with_context(|| format!("{code}: {summary}"))?;
    ensure!(summary["node"]["nodeName"] == node["metadata"]["name"], "{summary:#}");
    for (path, token, expected) in [
        ("/pods", Some(token.as_str()), "403"),
        ("/configz", Some(token.as_str()), "403"),
        ("/metrics", None, "401"),
        ("/metrics", Some("no.token.atall"), "401"),
    ] {
        let (code, body) = ask(path, token)?;
        ensure!(code == expected, "{path}: {code}, {body}");
    }
    cluster.stop()
}
