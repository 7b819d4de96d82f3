//! Guests in languages other than Rust, deployed from the manifests of their examples. Profile: loopback.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, curl, eventually, root};

/// Pushes a guest under the name that its manifest uses, and applies the manifest.
fn deploy(cluster: &Cluster, guest: &str, manifest: &str) -> Result<()> {
    cluster.push(guest, &format!("{guest}:v1"))?;
    let text = std::fs::read_to_string(root().join("examples").join(manifest))?;
    let file = cluster.file(&format!("{guest}.yaml"), &text)?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

/// The answer of a Service at a path, once it answers.
fn ask(cluster: &Cluster, service: &str, path: &str) -> Result<String> {
    cluster.kubectl(&["rollout", "status", &format!("deploy/{service}"), "--timeout=180s"])?;
    let object = cluster.get(&["service", service])?;
    let ip = object["spec"]["clusterIP"].as_str().context("the Service has no clusterIP")?.to_owned();
    let mut answer = String::new();
    eventually(&format!("{service} answers"), SOON, || {
        answer = curl(&format!("http://{ip}:8080{path}"))?;
        Ok(!answer.is_empty())
    })?;
    Ok(answer)
}

/// Row: guests: a service in JavaScript (ComponentizeJS)
#[test]
fn a_service_in_javascript() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster, "echo-js", "javascript/manifests/service.yaml")?;
    let answer: serde_json::Value = serde_json::from_str(&ask(&cluster, "echo-js", "/boats")?)?;
    ensure!(answer["language"] == "JavaScript" && answer["path"] == "/boats", "{answer}");
    cluster.stop()
}

/// Row: guests: a service in Python (componentize-py)
#[test]
fn a_service_in_python() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster, "primes-py", "python/manifests/service.yaml")?;
    let answer = ask(&cluster, "primes-py", "/20")?;
    ensure!(answer == "primes from Python: 2 3 5 7 11 13 17 19\n", "{answer}");
    cluster.stop()
}

/// Row: guests: a Job in Go (wasip1) that reads a ConfigMap volume
#[test]
fn a_job_in_go() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster, "words-go", "go/manifests/words.yaml")?;
    cluster.kubectl(&["wait", "--for=condition=complete", "job/words", "--timeout=120s"])?;
    let log = cluster.kubectl(&["logs", "job/words"])?;
    ensure!(log == "5 a\n3 boat\n3 is\n", "{log}");
    cluster.stop()
}

/// Row: guests: an indexed Job in C whose three pods share the work
#[test]
fn an_indexed_job_in_c() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster, "pi-c", "c/manifests/pi.yaml")?;
    cluster.kubectl(&["wait", "--for=condition=complete", "job/pi", "--timeout=120s"])?;
    let log = cluster.kubectl(&["logs", "-l", "job-name=pi"])?;
    let shares: Vec<f64> = log
        .lines()
        .filter_map(|line| line.rsplit_once(": "))
        .map(|(_, sum)| sum.parse())
        .collect::<Result<_, _>>()?;
    ensure!(shares.len() == 3, "{log}");
    let pi: f64 = shares.iter().sum();
    ensure!((pi - std::f64::consts::PI).abs() < 1e-5, "{log}");
    cluster.stop()
}
