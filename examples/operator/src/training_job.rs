//! `TrainingJob`, in the shape of Kubeflow's training jobs: so many workers run to completion, each knows its rank, and
//! the job's conditions say how far they are.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::api::{Api, Error};

/// The kind.
pub struct TrainingJob;

impl Kind for TrainingJob {
    const PATH: &'static str = "/apis/kubeflow.org/v1/trainingjobs";

    async fn reconcile(api: &Api, job: &Value) -> Result<(), Error> {
        let (name, namespace) = (text(job, "/metadata/name"), text(job, "/metadata/namespace"));
        if !text(job, "/metadata/deletionTimestamp").is_empty() || is(job, "Succeeded") || is(job, "Failed") {
            return Ok(());
        }
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let selector = format!("training.kubeflow.org%2Fjob-name%3D{name}");
        let found = api.get(&format!("{pods}?labelSelector={selector}")).await?;
        let plan = plan(job, found["items"].as_array().map(Vec::as_slice).unwrap_or_default());
        for pod in &plan.create {
            println!("{namespace}/{name}: worker {} starts", text(pod, "/metadata/name"));
            api.create(&pods, pod).await?;
        }
        for pod in &plan.delete {
            println!("{namespace}/{name}: worker {pod} failed and is tried again");
            api.delete(&format!("{pods}/{pod}")).await?;
        }
        if job["status"] != plan.status {
            let path = format!("/apis/kubeflow.org/v1/namespaces/{namespace}/trainingjobs/{name}/status");
            api.merge(&path, &json!({"status": plan.status})).await?;
            println!("{namespace}/{name}: {}", plan.status["replicaStatuses"]["Worker"]);
        }
        Ok(())
    }
}

/// What is to be done for a job.
struct Plan {
    create: Vec<Value>,
    delete: Vec<String>,
    status: Value,
}

fn plan(job: &Value, pods: &[Value]) -> Plan {
    let workers = &job["spec"]["replicaSpecs"]["Worker"];
    let wanted = workers["replicas"].as_i64().unwrap_or(1);
    let limit = job["spec"]["runPolicy"]["backoffLimit"].as_i64().unwrap_or(3);
    let mut retries = job["status"]["retries"].as_i64().unwrap_or(0);
    let (mut active, mut succeeded, mut failed) = (0, 0, 0);
    let (mut create, mut delete) = (Vec::new(), Vec::new());
    for rank in 0..wanted {
        let name = format!("{}-worker-{rank}", text(job, "/metadata/name"));
        match pods.iter().find(|p| text(p, "/metadata/name") == name) {
            None => {
                active += 1;
                create.push(worker(job, &name, rank, wanted));
            }
            Some(pod) => match text(pod, "/status/phase") {
                "Succeeded" => succeeded += 1,
                "Failed" if retries < limit => {
                    retries += 1;
                    active += 1;
                    delete.push(name);
                }
                "Failed" => failed += 1,
                _ => active += 1,
            },
        }
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let started = pods.iter().any(|p| !matches!(text(p, "/status/phase"), "" | "Pending"));
    let mut status = job["status"].as_object().cloned().unwrap_or_default();
    status.insert(
        "replicaStatuses".into(),
        json!({"Worker": {"active": active, "succeeded": succeeded, "failed": failed}}),
    );
    if retries > 0 {
        status.insert("retries".into(), retries.into());
    }
    status.entry("startTime").or_insert_with(|| now.clone().into());
    condition(&mut status, "Created", true, "TrainingJobCreated", "the workers are created", &now);
    let over = succeeded == wanted || failed > 0;
    if started || over {
        condition(&mut status, "Running", !over, "TrainingJobRunning", "the workers run", &now);
    }
    if succeeded == wanted {
        condition(
            &mut status,
            "Succeeded",
            true,
            "TrainingJobSucceeded",
            "every worker ran to completion",
            &now,
        );
        status.entry("completionTime").or_insert_with(|| now.clone().into());
    } else if failed > 0 {
        condition(&mut status, "Failed", true, "TrainingJobFailed", "a worker failed too often", &now);
        status.entry("completionTime").or_insert_with(|| now.clone().into());
    }
    Plan { create, delete, status: Value::Object(status) }
}

/// The pod of a worker: the template, with its rank.
fn worker(job: &Value, name: &str, rank: i64, size: i64) -> Value {
    let template = &job["spec"]["replicaSpecs"]["Worker"]["template"];
    let mut spec = template["spec"].clone();
    spec["restartPolicy"] = "Never".into();
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        let mut env = container["env"].as_array().cloned().unwrap_or_default();
        for (name, value) in [("RANK", rank), ("WORLD_SIZE", size)] {
            env.push(json!({"name": name, "value": value.to_string()}));
        }
        container["env"] = env.into();
    }
    let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert("training.kubeflow.org/job-name".into(), job["metadata"]["name"].clone());
    labels.insert("training.kubeflow.org/replica-type".into(), "worker".into());
    labels.insert("training.kubeflow.org/replica-index".into(), rank.to_string().into());
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "ownerReferences": [{
            "apiVersion": job["apiVersion"], "kind": job["kind"], "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
        }]},
        "spec": spec,
    })
}

fn condition(status: &mut Map<String, Value>, kind: &str, on: bool, reason: &str, words: &str, now: &str) {
    let state = if on { "True" } else { "False" };
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    let new =
        json!({"type": kind, "status": state, "reason": reason, "message": words, "lastTransitionTime": now});
    match list.iter_mut().find(|c| c["type"] == kind) {
        Some(old) if old["status"] == state => {}
        Some(old) => *old = new,
        None => list.push(new),
    }
}

fn is(job: &Value, kind: &str) -> bool {
    let conditions = job["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
