//! Knative manifests: from zero, up, and back to zero. Profile: loopback.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, eventually, root, succeed};

const HOST: &str = "hello.default.example.com";

/// Deploys the example and waits until its first revision is ready.
fn deploy(cluster: &Cluster) -> Result<()> {
    cluster.push("hello", "hello:v1")?;
    apply(cluster, |text| text)?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"]).map(drop)
}

/// Applies the example's manifest, changed.
fn apply(cluster: &Cluster, change: impl Fn(String) -> String) -> Result<()> {
    let text = std::fs::read_to_string(root().join("examples/serverless/manifests/hello.yaml"))?;
    let file = cluster.file("hello.yaml", &change(text))?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

fn gateway(cluster: &Cluster) -> Result<String> {
    let mut told = None;
    eventually("the node tells its gateway", SOON, || {
        let nodes = cluster.get(&["nodes"])?;
        let address = &nodes["items"][0]["metadata"]["annotations"]["coracle.dev/gateway"];
        told = address.as_str().map(str::to_owned);
        Ok(told.is_some())
    })?;
    told.context("the node does not tell its gateway")
}

/// One request through the gateway.
fn ask(gateway: &str, path: &str) -> Result<String> {
    let host = format!("Host: {HOST}");
    let url = format!("http://{gateway}{path}");
    succeed(std::process::Command::new("curl").args([
        "--fail-with-body",
        "-sS",
        "-m",
        "60",
        "-H",
        &host,
        &url,
    ]))
}

/// The pods of a revision, or of all.
fn pods(cluster: &Cluster) -> Result<usize> {
    let pods = cluster.get(&["pods", "-l", "serving.knative.dev/service=hello"])?;
    Ok(pods["items"].as_array().map_or(0, Vec::len))
}

fn gone(cluster: &Cluster) -> Result<()> {
    eventually("there are no pods", Duration::from_secs(60), || Ok(pods(cluster)? == 0))
}

/// Row: serverless: a Knative Service answers from zero pods, scales up with load, and goes back to zero
#[test]
fn mission_m32_from_zero_up_and_back_to_zero() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("web", "web:v1")?;
    apply(&cluster, |text| text.replace("hello:v1", "web:v1"))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"])?;
    let table = cluster.kubectl(&["get", "ksvc", "hello"])?;
    for word in ["URL", "LATESTREADY", "http://hello.default.example.com", "hello-00001", "True"] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    let gateway = gateway(&cluster)?;
    gone(&cluster)?;

    let start = Instant::now();
    let answer = ask(&gateway, "/env?K_REVISION")?;
    ensure!(answer == "hello-00001", "{answer}");
    // Not a figure, but a bound: it was held for a pod, not for a retry.
    ensure!(start.elapsed() < Duration::from_secs(20), "held for {:?}", start.elapsed());
    ensure!(pods(&cluster)? >= 1, "answered by no pod");

    let address = gateway.as_str();
    let end = Instant::now() + Duration::from_secs(6);
    let most = std::thread::scope(|scope| -> Result<usize> {
        let clients: Vec<_> = (0..40)
            .map(|_| {
                scope.spawn(move || -> Result<u32> {
                    let mut answers = 0;
                    while Instant::now() < end {
                        ask(address, "/sleep?300")?;
                        answers += 1;
                    }
                    Ok(answers)
                })
            })
            .collect();
        let mut most = 0;
        while Instant::now() < end {
            most = most.max(pods(&cluster)?);
        }
        for client in clients {
            ensure!(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?? > 0);
        }
        Ok(most)
    })?;
    ensure!(
        (2..=10).contains(&most),
        "{most} pods under load of 40 clients, 5 for each pod, 10 pods at most"
    );
    gone(&cluster)?;
    cluster.stop()
}

/// Row: serverless: a change makes a revision; traffic is split between revisions by percent and reached by tag
#[test]
fn mission_m32_revisions_share_the_traffic() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster)?;
    let split = "  traffic:\n  - revisionName: hello-00001\n    percent: 50\n    tag: old\n  - latestRevision: true\n    percent: 50\n";
    apply(&cluster, |text| text.replace("value: Hello", "value: Servus") + split)?;
    eventually("both revisions have their share", Duration::from_secs(60), || {
        let service = cluster.get(&["ksvc", "hello"])?;
        let status = &service["status"];
        let revisions: Vec<_> =
            (0..2).map(|at| status["traffic"][at]["revisionName"].as_str().unwrap_or_default()).collect();
        Ok(status["observedGeneration"] == service["metadata"]["generation"]
            && revisions == ["hello-00001", "hello-00002"])
    })?;
    let gateway = gateway(&cluster)?;
    let mut seen = [0, 0];
    for _ in 0..60 {
        let answer = ask(&gateway, "/")?;
        if answer.starts_with("Hello from hello-00001-") {
            seen[0] += 1;
        } else if answer.starts_with("Servus from hello-00002-") {
            seen[1] += 1;
        } else {
            anyhow::bail!("{answer}");
        }
    }
    // With halves, fewer than 10 of 60 is a chance of one in ten million.
    ensure!(seen.iter().all(|count| *count >= 10), "{seen:?} of 60");
    let host = format!("Host: old-{HOST}");
    let url = format!("http://{gateway}/");
    let old = succeed(std::process::Command::new("curl").args(["-sS", "-m", "60", "-H", &host, &url]))?;
    ensure!(old.starts_with("Hello from hello-00001-"), "{old}");
    cluster.stop()
}

/// Row: serverless: a revision whose image comes after its window without requests becomes ready all the same
#[test]
fn mission_m32_a_late_image_leaves_nothing_behind() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    apply(&cluster, |text| text.replace("window: 10s", "window: 6s"))?;
    // The first pause between two pulls is 10 s: at the second pull the window is over.
    let pulls = ["get", "events", "--field-selector=reason=Pulling", "-o", "jsonpath={.items[*].count}"];
    eventually("the image was pulled twice", Duration::from_secs(60), || {
        let counts = cluster.kubectl(&pulls)?;
        Ok(counts.split_whitespace().filter_map(|count| count.parse::<u32>().ok()).sum::<u32>() >= 2)
    })?;
    ensure!(pods(&cluster)? == 1, "the revision lost its pod before it could serve");
    cluster.push("hello", "hello:v1")?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"])?;
    let answer = ask(&gateway(&cluster)?, "/")?;
    ensure!(answer.starts_with("Hello from hello-00001-"), "{answer}");
    cluster.stop()
}
