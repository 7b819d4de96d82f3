//! What our annotations ask of controllers, and what controllers leave alone or find out by themselves. Profile: loopback.

use anyhow::{Context, Result, ensure};
use coracle_e2e::{Cluster, Ended, Profile, eventually};
use serde_json::{Value, json};

use super::super::pods::{apply, has};
use super::{PATIENCE, name, pods, until};

/// A Deployment of the hello program that uses a ConfigMap, and a Service before it.
fn hello(labels: &Value) -> [Value; 3] {
    let meta = |extra: Value| {
        let mut meta = json!({"name": "hello"});
        meta.as_object_mut()
            .into_iter()
            .for_each(|m| m.extend(extra.as_object().cloned().unwrap_or_default()));
        meta
    };
    [
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(json!({})), "data": {"WORD": "one"}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta(json!({})),
            "spec": {"selector": labels, "ports": [{"port": 8080}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": meta(json!({"annotations": {"coracle.dev/roll-on-change": "true"}})),
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{
                "name": "c", "image": "hello:v1", "ports": [{"containerPort": 8080}],
                "envFrom": [{"configMapRef": {"name": "hello"}}],
            }]},
        }}}),
    ]
}

fn revision(cluster: &Cluster) -> Result<String> {
    let deployment = cluster.get(&["deployment", "hello"])?;
    let revision = &deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
    Ok(revision.as_str().unwrap_or_default().to_owned())
}

/// Row: annotations: a Deployment rolls when its ConfigMap changes; a CronJob calls a wasm handler on schedule and starts no container
/// Profile: loopback
#[test]
fn annotations_roll_workloads_and_call_handlers() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("hello", "hello:v1")?;
    apply(&cluster, &hello(&json!({"app": "hello"})))?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    until(&cluster, &["deployment", "hello"], "what it uses is noted", |d| {
        d["metadata"]["annotations"]["coracle.dev/configuration-hash"].is_string()
    })?;
    ensure!(revision(&cluster)? == "1", "nothing has changed yet");
    let before = pods(&cluster, "app=hello")?;
    let before = before.first().map(name).context("its pod")?;

    // Labels are no content; data is.
    cluster.kubectl(&["label", "configmap", "hello", "a=b"])?;
    cluster.kubectl(&["patch", "configmap", "hello", "--type=merge", "-p", r#"{"data":{"WORD":"two"}}"#])?;
    eventually("a second revision", PATIENCE, || Ok(revision(&cluster)? == "2"))?;
    cluster.kubectl(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    has(&cluster.kubectl(&["describe", "deployment", "hello"])?, &["ConfigurationChanged"])?;
    eventually("the old pod is gone", PATIENCE, || {
        Ok(pods(&cluster, "app=hello")?.iter().all(|pod| name(pod) != before))
    })?;
    let after = pods(&cluster, "app=hello")?;
    ensure!(after.len() == 1, "{after:#?}");
    let pod = after.first().map(name).context("its pod")?;
    let variables = cluster.kubectl(&[
        "get",
        "pod",
        &pod,
        "-o",
        "jsonpath={.status.containerStatuses[0].restartCount}",
    ])?;
    ensure!(variables == "0", "a new pod, not a restarted one");

    let cron = |name: &str, to: &str| {
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": name, "annotations": {"coracle.dev/invoke": to}},
            "spec": {"schedule": "@every 1s", "concurrencyPolicy": "Forbid", "jobTemplate": {"spec": {"template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "c", "image": "never:v1"}],
            }}}}},
        })
    };
    apply(&cluster, &[cron("calls", "http://hello:8080/nightly"), cron("lost", "http://nobody:8080/")])?;
    until(&cluster, &["cronjob", "calls"], "has called", |c| c["status"]["lastSuccessfulTime"].is_string())?;
    eventually("the handler saw a second call", PATIENCE, || {
        Ok(cluster.kubectl(&["logs", &pod])?.matches("request ").count() >= 2)
    })?;
    eventually("a call that fails is told", PATIENCE, || {
        has(
            &cluster.kubectl(&["describe", "cronjob", "lost"])?,
            &["FailedInvoke", "Error calling the handler"],
        )?;
        Ok(true)
    })?;
    ensure!(cluster.get(&["cronjob", "lost"])?["status"]["lastSuccessfulTime"].is_null());
    has(&cluster.kubectl(&["describe", "cronjob", "calls"])?, &["Invoked"])?;
    // Nobody made a Job or a pod, and the handler's pod is the one from before.
    ensure!(cluster.get(&["jobs", "-A"])?["items"] == json!([]));
    let all = cluster.get(&["pods", "-A"])?["items"].take();
    let names: Vec<String> = all.as_array().into_iter().flatten().map(name).collect();
    ensure!(names == [pod], "{names:?}");
    let events = cluster.kubectl(&["get", "events"])?;
    ensure!(!events.contains("never:v1") && !events.contains("Created job"), "{events}");
    cluster.stop()
}

const TRAIN: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: trains.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: trains, singular: train, kind: Train}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.wagons, statusReplicasPath: .status.wagons}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {wagons: {type: integer}}}
          status: {type: object, properties: {wagons: {type: integer}}}
";

fn create(cluster: &Cluster, object: &Value) -> Result<Value> {
    let file = cluster.file("created.json", &object.to_string())?;
    Ok(serde_json::from_str(&cluster.kubectl(&["create", "-o", "json", "-f", &file])?)?)
}

fn owned_by(owner: &Value, controller: bool) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": controller, "blockOwnerDeletion": true,
    })
}

/// Row: owners: objects that own each other in a circle go; a budget counts what an owner with a scale of its own wants; a Job that another manages is left alone
/// Profile: loopback
#[test]
fn owners_of_any_kind_and_in_circles() -> Result<Ended> {
    let mut cluster = Cluster::start(Profile::Loopback)?;
    cluster.push("steps", "steps:v1")?;
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "theirs"},
        "spec": {"managedBy": "example.com/theirs", "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c", "image": "steps:v1", "args": ["print no"]}],
        }}},
    });
    let mut ours = job.clone();
    ours["metadata"]["name"] = "ours".into();
    ours["spec"]["managedBy"] = "kubernetes.io/job-controller".into();
    apply(&cluster, &[job, ours])?;

    let crd = cluster.file("crd.yaml", TRAIN)?;
    cluster.kubectl(&["apply", "-f", &crd])?;
    cluster.kubectl(&["wait", "--for=condition=Established", "crd/trains.example.com", "--timeout=10s"])?;
    let train = json!({"apiVersion": "example.com/v1", "kind": "Train", "metadata": {"name": "t"}, "spec": {"wagons": 4}});
    let train = create(&cluster, &train)?;
    for wagon in ["w1", "w2", "w3"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": wagon, "labels": {"app": "train"}, "ownerReferences": [owned_by(&train, true)]},
            "spec": {"terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "steps:v1", "args": ["sleep 600000"]}]},
        });
        create(&cluster, &pod)?;
    }
    let budget = |name: &str, rule: Value| {
        let mut budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": "train"}}}});
        budget["spec"]
            .as_object_mut()
            .into_iter()
            .for_each(|s| s.extend(rule.as_object().cloned().unwrap_or_default()));
        budget
    };
    apply(&cluster, &[budget("half", json!({"minAvailable": "50%"}))])?;
    // Half of the four that the owner wants must stay, of the three that there are.
    let half = until(&cluster, &["pdb", "half"], "counts what the owner wants", |b| {
        b["status"]["currentHealthy"] == 3 && b["status"]["disruptionsAllowed"] == 1
    })?;
    ensure!(half["status"]["expectedPods"] == 4 && half["status"]["desiredHealthy"] == 2, "{half:#}");
    cluster.kubectl(&["drain", "node-1", "--force", "--pod-selector=app=train", "--dry-run=server"])?;

    // A circle of three, deleted from one of them, foreground.
    let map = |name: &str, owners: Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}});
    for (kind, cascade) in [("f", "foreground"), ("b", "background")] {
        let first = create(&cluster, &map(&format!("{kind}1"), json!([])))?;
        let second = create(&cluster, &map(&format!("{kind}2"), json!([owned_by(&first, false)])))?;
        let third = create(&cluster, &map(&format!("{kind}3"), json!([owned_by(&second, false)])))?;
        let closed = json!({"metadata": {"ownerReferences": [owned_by(&third, false)]}}).to_string();
        cluster.kubectl(&["patch", "configmap", &format!("{kind}1"), "--type=merge", "-p", &closed])?;
        cluster.kubectl(&[
            "delete",
            "configmap",
            &format!("{kind}2"),
            &format!("--cascade={cascade}"),
            "--wait=false",
        ])?;
        for number in 1..=3 {
            eventually(&format!("{kind}{number} is gone ({cascade})"), PATIENCE, || {
                Ok(cluster
                    .kubectl(&["get", "configmap", &format!("{kind}{number}"), "--ignore-not-found"])?
                    .is_empty())
            })?;
        }
    }

    // The controller had all this time to touch the Job that is not its own; the other one is done.
    until(&cluster, &["job", "ours"], "completes", |j| j["status"]["succeeded"] == 1)?;
    let theirs = cluster.get(&["job", "theirs"])?;
    ensure!(theirs["status"] == json!({}), "{:#}", theirs["status"]);
    ensure!(pods(&cluster, "job-name=theirs")?.is_empty());
    cluster.stop()
}
