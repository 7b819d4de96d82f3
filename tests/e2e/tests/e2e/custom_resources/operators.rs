//! Operators that run as wasm pods: `examples/operator`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, SOON, curl, eventually, root};
use serde_json::Value;

/// Pushes the images and applies the operators.
fn deploy(cluster: &Cluster, images: &[&str]) -> Result<()> {
    for image in images {
        cluster.push(image, &format!("{image}:v1"))?;
    }
    for entry in ["01-websites-crd", "02-trainingjobs-crd", "03-access", "04-operators"] {
        let text = std::fs::read_to_string(root().join(format!("examples/operator/manifests/{entry}.yaml")))?;
        let file = cluster.file(&format!("{entry}.yaml"), &text)?;
        cluster.kubectl(&["apply", "-f", &file])?;
    }
    for operator in ["website-operator", "training-operator"] {
        let deployment = format!("deploy/{operator}");
        cluster.kubectl(&["-n", "operators", "rollout", "status", &deployment, "--timeout=90s"])?;
    }
    Ok(())
}

fn sample(cluster: &Cluster, name: &str) -> Result<()> {
    let text = std::fs::read_to_string(root().join(format!("examples/operator/samples/{name}.yaml")))?;
    let file = cluster.file(&format!("{name}.yaml"), &text)?;
    cluster.kubectl(&["apply", "-f", &file]).map(drop)
}

/// What the operator said, for a failure.
fn said(cluster: &Cluster, operator: &str) -> String {
    let deployment = format!("deploy/{operator}");
    cluster.kubectl(&["-n", "operators", "logs", &deployment]).unwrap_or_else(|e| e.to_string())
}

/// Row: custom resources: an operator that is a wasm pod watches its kind with its account's token and reconciles Deployments and Services
/// Profile: loopback
#[test]
fn mission_m23_an_operator_in_wasm_reconciles_custom_objects() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster, &["operator", "hello"])?;
    sample(&cluster, "website")?;
    let ready = |count: i64| {
        eventually(&format!("{count} pods serve the site"), Duration::from_secs(60), || {
            let site = cluster.get(&["website", "welcome"])?;
            Ok(site["status"]["readyReplicas"] == count && site["status"]["phase"] == "Ready")
        })
        .with_context(|| said(&cluster, "website-operator"))
    };
    ready(2)?;
    let site = cluster.get(&["site", "welcome"])?;
    let address = site["status"]["address"].as_str().context("no address")?.to_owned();
    eventually("the site answers", SOON, || {
        Ok(curl(&format!("http://{address}/"))?.starts_with("Welcome aboard from welcome-"))
    })?;
    let table = cluster.kubectl(&["get", "site"])?;
    for word in ["GREETING", "READY", "PHASE", "Welcome aboard", "Ready"] {
        ensure!(table.contains(word), "no {word} in\n{table}");
    }
    // What the operator owns it owns by its name; what somebody else sets it leaves alone.
    let deployment = cluster.get(&["deploy", "welcome", "--show-managed-fields"])?;
    let managers = deployment["metadata"]["managedFields"].as_array().context("no managed fields")?;
    ensure!(
        managers.iter().any(|m| m["manager"] == "website-operator" && m["operation"] == "Apply"),
        "{managers:?}"
    );

    cluster.kubectl(&["scale", "website/welcome", "--replicas=3"])?;
    ready(3)?;
    // A change by hand is undone.
    cluster.kubectl(&["scale", "deploy/welcome", "--replicas=1"])?;
    eventually("the operator restores the Deployment", Duration::from_secs(30), || {
        Ok(cluster.get(&["deploy", "welcome"])?["spec"]["replicas"] == 3)
    })?;
    cluster.kubectl(&[
        "patch",
        "site",
        "welcome",
        "--type=merge",
        "-p",
        "{\"spec\":{\"greeting\":\"Ahoy\"}}",
    ])?;
    eventually("the site has its new greeting", Duration::from_secs(60), || {
        Ok(curl(&format!("http://{address}/")).is_ok_and(|answer| answer.starts_with("Ahoy from")))
    })
    .with_context(|| said(&cluster, "website-operator"))?;
    cluster.kubectl(&["delete", "site", "welcome", "--timeout=30s"])?;
    eventually("the site's objects go with it", Duration::from_secs(60), || {
        let left = cluster.get(&["deploy,svc", "-l", "!component"])?;
        Ok(left["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    cluster.stop()
}

/// Row: custom resources: a training operator of Kubeflow's shape, a wasm pod itself, runs workers to completion and reports conditions; failed workers are tried again up to a limit
/// Profile: loopback
#[test]
fn mission_m22_a_training_operator_runs_workers_to_completion() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    deploy(&cluster, &["operator", "trainer", "steps"])?;
    sample(&cluster, "training-job")?;
    cluster
        .kubectl(&["wait", "--for=condition=Succeeded", "trainingjob/line", "--timeout=60s"])
        .with_context(|| said(&cluster, "training-operator"))?;
    let job = cluster.get(&["tj", "line"])?;
    ensure!(
        job["status"]["replicaStatuses"]["Worker"]
            == serde_json::json!({"active": 0, "failed": 0, "succeeded": 3}),
        "{job}"
    );
    ensure!(job["status"]["completionTime"].is_string(), "{job}");
    ensure!(condition(&job, "Running") == "False" && condition(&job, "Created") == "True", "{job}");
    let logs = cluster.kubectl(&["logs", "-l", "training.kubeflow.org/job-name=line", "--tail=-1"])?;
    for rank in 0..3 {
        ensure!(
            logs.contains(&format!("rank {rank} of 3: y = 3.00x + 2.00")),
            "rank {rank} did not train:\n{logs}"
        );
    }
    let table = cluster.kubectl(&["get", "tj"])?;
    ensure!(table.contains("Succeeded") && table.contains("STATE"), "{table}");

    // A worker that cannot succeed is tried again, and then the job has failed.
    let broken = "apiVersion: kubeflow.org/v1\nkind: TrainingJob\nmetadata: {name: broken}\nspec:\n  runPolicy: {backoffLimit: 1}\n  replicaSpecs:\n    Worker:\n      template: {spec: {containers: [{name: w, image: 'steps:v1', args: ['exit 3']}]}}\n";
    let file = cluster.file("broken.yaml", broken)?;
    cluster.kubectl(&["apply", "-f", &file])?;
    cluster
        .kubectl(&["wait", "--for=condition=Failed", "trainingjob/broken", "--timeout=60s"])
        .with_context(|| said(&cluster, "training-operator"))?;
    ensure!(cluster.get(&["tj", "broken"])?["status"]["retries"] == 1);
    let empty =
        "apiVersion: kubeflow.org/v1\nkind: TrainingJob\nmetadata: {name: empty}\nspec: {replicaSpecs: {}}\n";
    let said = cluster.kubectl_fails(&["apply", "-f", &cluster.file("empty.yaml", empty)?])?;
    ensure!(said.contains("spec.replicaSpecs.Worker: Required value"), "{said}");
    cluster.stop()
}

fn condition<'a>(job: &'a Value, kind: &str) -> &'a str {
    let list = job["status"]["conditions"].as_array();
    let found = list.into_iter().flatten().find(|c| c["type"] == kind);
    found.and_then(|c| c["status"].as_str()).unwrap_or("")
}
