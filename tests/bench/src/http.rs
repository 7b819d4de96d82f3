//! Suite `http`: answers a second of one pod, direct and through its Service, beside `wasmtime serve` with the same component
//! and nginx with the same answer, all asked by `wrk` over 32 connections.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, guest_file, succeed};

use crate::figures::{Beside, Figures};
use crate::peer::{Asked, Peer, ask};

const SUITE: &str = "http";
const CONNECTIONS: usize = 32;
/// Not measured: caches warm up, pools fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// What every server answers, in both kinds of pod.
const ANSWER: &str = "hello from bench";

pub fn run(cluster: &Cluster, duration: Duration, figures: &mut Figures) -> Result<()> {
    cluster.push("web", "web:v1")?;
    let pooled = Urls::deploy(cluster, "pooled")?;
    let fresh = Urls::deploy(cluster, "fresh")?;
    let component = guest_file("web")?;

    let ours = measure("pods that reuse instances", &pooled.pod, duration)?;
    let through = measure("the same through their Service", &pooled.service, duration)?;
    add(figures, "service", &through, (&ours, "the pod itself"), 0.9);
    for (name, reuse, goal) in [("reused-instances", true, 1.3), ("fresh-instances", false, 2.0)] {
        let url = if reuse { &pooled.pod } else { &fresh.pod };
        let ours = measure(name, url, duration)?;
        let peer = Peer::wasmtime(&component, reuse)?;
        let theirs = measure(&peer.version, &peer.url(), duration)?;
        add(figures, name, &ours, (&theirs, &peer.version), goal);
    }
    let peer = Peer::nginx(ANSWER)?;
    let theirs = measure(&peer.version, &peer.url(), duration)?;
    add(figures, "reused-instances-or-native", &ours, (&theirs, &peer.version), 0.8);
    Ok(())
}

/// Where a pod answers.
struct Urls {
    pod: String,
    service: String,
}

impl Urls {
    /// Makes a pod whose instances are `fresh` or `pooled`, and a Service of the same name.
    fn deploy(cluster: &Cluster, instances: &str) -> Result<Self> {
        let manifest = format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: {instances}, labels: {{app: {instances}}}, annotations: {{coracle.dev/http-instance: {instances}}}}}
spec:
  containers:
  - {{name: web, image: 'web:v1', ports: [{{containerPort: 8080}}], env: [{{name: POD, value: bench}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: {instances}}}
spec: {{selector: {{app: {instances}}}, ports: [{{port: 8080}}]}}
"
        );
        let file = cluster.file(&format!("{instances}.yaml"), &manifest)?;
        cluster.kubectl(&["apply", "-f", &file])?;
        cluster.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{instances}"), "--timeout=60s"])?;
        let at = |kind: &str, path: &str| -> Result<String> {
            let address = cluster.kubectl(&["get", kind, instances, "-o", &format!("jsonpath={path}")])?;
            ensure!(!address.is_empty(), "{kind} {instances} has no address");
            let url = format!("http://{address}:8080/");
            // Every server must answer alike, or the rates compare nothing.
            let retry = ["--retry", "20", "--retry-connrefused", "--retry-delay", "1", "-fsS", &url];
            let answer = succeed(std::process::Command::new("curl").args(retry)).context(url.clone())?;
            ensure!(answer.trim_end() == ANSWER, "{url} answers {answer:?}");
            Ok(url)
        };
        Ok(Self { pod: at("pod", "{.status.podIP}")?, service: at("service", "{.spec.clusterIP}")? })
    }
}

fn measure(what: &str, url: &str, duration: Duration) -> Result<Asked> {
    eprintln!("{what}: {url}");
    ask(url, CONNECTIONS, WARM_UP).and_then(|_| ask(url, CONNECTIONS, duration)).context(what.to_owned())
}

fn add(figures: &mut Figures, name: &str, ours: &Asked, (theirs, version): (&Asked, &str), goal: f64) {
    let beside = |peer, goal| Beside { peer, version: version.to_owned(), goal };
    figures.compare(SUITE, format!("{name}/rate"), "1/s", ours.rate, beside(theirs.rate, Some(goal)));
    figures.compare(SUITE, format!("{name}/p50"), "ms", ours.p50, beside(theirs.p50, None));
    figures.compare(SUITE, format!("{name}/p99"), "ms", ours.p99, beside(theirs.p99, None));
    figures.compare(
        SUITE,
        format!("{name}/errors"),
        "requests",
        ours.errors as f64,
        beside(theirs.errors as f64, None),
    );
}
