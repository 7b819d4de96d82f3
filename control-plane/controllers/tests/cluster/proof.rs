//! Only one of two controller managers acts; and what controllers send is what the API of Kubernetes knows.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, PersistentVolumeClaim, Pod, ReplicationController, ResourceQuota, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::openapi::Facts;
use crate::tap::{Call, Fate, Judge};
use crate::world::{World, deployment};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_managers_only_one_acts() {
    let mut world = World::without_controllers().await;
    // Whoever wrote, in order.
    let log: Arc<Mutex<Vec<&'static str>>> = Arc::default();
    // Whose calls reach nobody any more: a process that is killed takes its threads with it, a task does not.
    let dead: Arc<Mutex<Option<&'static str>>> = Arc::default();
    let mut managers = Vec::new();
    for name in ["first", "second"] {
        let (log, dead) = (log.clone(), dead.clone());
        let judge: Judge = Arc::new(move |call: &Call| {
            let dead = dead.lock();
            if *dead == Some(name) {
                return Fate::Lost;
            }
            if call.is_write() {
                log.lock().push(name);
            }
            Fate::Pass
        });
        let (options, candidate, stop) =
            (world.options(&judge), world.candidate(name), CancellationToken::new());
        let term = stop.clone();
        let task = tokio::spawn(async move {
            candidate.run(term, |shutdown| coracle_controllers::run(options.clone(), shutdown)).await;
        });
        managers.push((name, task, stop));
    }
    world.add_nodes(1).await;
    let deployments: Api<Deployment> = world.api("default");
    deployments.create(&PostParams::default(), &deployment("web", 3)).await.unwrap();
    world.rolled_out("default", "web", 3, "1").await;
    let leader = log.lock()[0];
    assert!(log.lock().iter().all(|who| *who == leader), "both act: {:?}", log.lock());
    // It dies without a word: the other takes over when the Lease has run out, and makes up for it.
    *dead.lock() = Some(leader);
    let first = managers.iter().position(|(name, ..)| *name == leader).unwrap();
    managers.swap_remove(first).1.abort();
    let scale = json!({ "spec": { "replicas": 5 } });
    deployments.patch("web", &PatchParams::default(), &Patch::Merge(scale)).await.unwrap();
    world.rolled_out("default", "web", 5, "1").await;
    managers[0].2.cancel();
    world.stop().await;
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn template(app: &str, policy: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": { "restartPolicy": policy, "containers": [{ "name": "c", "image": "v1", "resources": { "requests": { "cpu": "10m" } } }] },
    })
}

/// One of each workload and what goes with it.
async fn fill(world: &World) {
    let post = PostParams::default();
    let selector = |app: &str| json!({ "matchLabels": { "app": app } });
    world
        .api::<ResourceQuota>("default")
        .create(&post, &object(json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "50" } } })))
        .await
        .unwrap();
    world.api::<Deployment>("default").create(&post, &deployment("web", 3)).await.unwrap();
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] } });
    world.api::<Service>("default").create(&post, &object(service)).await.unwrap();
    let manual = json!({ "metadata": { "name": "db" }, "spec": { "ports": [{ "port": 5432 }] } });
    world.api::<Service>("default").create(&post, &object(manual)).await.unwrap();
    let endpoints = json!({ "metadata": { "name": "db" }, "subsets": [{ "addresses": [{ "ip": "192.0.2.1" }], "ports": [{ "port": 5432 }] }] });
    world.api::<Endpoints>("default").create(&post, &object(endpoints)).await.unwrap();
    let budget =
        json!({ "metadata": { "name": "web" }, "spec": { "minAvailable": 1, "selector": selector("web") } });
    world.api::<PodDisruptionBudget>("default").create(&post, &object(budget)).await.unwrap();
    let scaler = json!({ "metadata": { "name": "web" }, "spec": {
        "minReplicas": 4, "maxReplicas": 6, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
        "metrics": [{ "type": "External", "external": { "metric": { "name": "queue" }, "target": { "type": "Value", "value": "3" } } }],
    } });
    world.api::<HorizontalPodAutoscaler>("default").create(&post, &object(scaler)).await.unwrap();
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let set = json!({ "metadata": { "name": "set" }, "spec": {
        "replicas": 2, "serviceName": "set", "selector": selector("set"), "template": template("set", "Always"),
        "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Delete", "whenScaled": "Delete" },
    } });
    world.api::<PersistentVolumeClaim>("default").create(&post, &object(claim)).await.unwrap();
    world.api::<StatefulSet>("default").create(&post, &object(set)).await.unwrap();
    let daemon = json!({ "metadata": { "name": "agent" }, "spec": { "selector": selector("agent"), "template": template("agent", "Always") } });
    world.api::<DaemonSet>("default").create(&post, &object(daemon)).await.unwrap();
    let rc = json!({ "metadata": { "name": "old" }, "spec": { "replicas": 1, "selector": { "app": "old" }, "template": template("old", "Always") } });
    world.api::<ReplicationController>("default").create(&post, &object(rc)).await.unwrap();
    let job = json!({ "completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 1, "ttlSecondsAfterFinished": 0, "template": template("job", "Never") });
    world
        .api::<Job>("default")
        .create(&post, &object(json!({ "metadata": { "name": "job" }, "spec": job })))
        .await
        .unwrap();
    let cron = json!({ "schedule": "@every 1s", "jobTemplate": { "spec": { "template": template("cron", "Never") } } });
    world
        .api::<CronJob>("default")
        .create(&post, &object(json!({ "metadata": { "name": "cron" }, "spec": cron })))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_send_only_what_the_api_knows() {
    let calls: Arc<Mutex<Vec<Call>>> = Arc::default();
    let own = calls.clone();
    let judge: Judge = Arc::new(move |call: &Call| {
        own.lock().push(call.clone());
        Fate::Pass
    });
    let world = World::start_judged(2, &judge).await;
    fill(&world).await;
    let (sets, daemons): (Api<StatefulSet>, Api<DaemonSet>) = (world.api("default"), world.api("default"));
    let (jobs, slices): (Api<Job>, Api<EndpointSlice>) = (world.api("default"), world.api("default"));
    world.rolled_out("default", "web", 4, "1").await;
    world
        .until("all of it", async || {
            let set = sets.get("set").await.unwrap().status.unwrap_or_default();
            let daemon = daemons.get("agent").await.unwrap().status.unwrap_or_default();
            let mirrored =
                slices.list(&ListParams::default().labels("kubernetes.io/service-name=db")).await.unwrap();
            set.ready_replicas == Some(2)
                && daemon.number_ready == 2
                && jobs.get_opt("job").await.unwrap().is_none()
                && !jobs.list(&ListParams::default()).await.unwrap().items.is_empty()
                && mirrored.items.len() == 1
        })
        .await;
    // A new template, one pod fewer, and an end.
    let image =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    let merge = PatchParams::default();
    world.api::<Deployment>("default").patch("web", &merge, &Patch::Strategic(image.clone())).await.unwrap();
    sets.patch("set", &merge, &Patch::Strategic(image.clone())).await.unwrap();
    daemons.patch("agent", &merge, &Patch::Strategic(image)).await.unwrap();
    world.rolled_out("default", "web", 4, "2").await;
    sets.patch("set", &merge, &Patch::Merge(json!({ "spec": { "replicas": 1 } }))).await.unwrap();
    world.api::<CronJob>("default").delete("cron", &DeleteParams::default()).await.unwrap();
    let (pods, namespaces): (Api<Pod>, Api<Namespace>) = (world.api("default"), Api::all(world.client()));
    namespaces
        .create(&PostParams::default(), &object(json!({ "metadata": { "name": "team" } })))
        .await
        .unwrap();
    world.api::<Deployment>("team").create(&PostParams::default(), &deployment("web", 2)).await.unwrap();
    world.rolled_out("team", "web", 2, "1").await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    world.until("the namespace is gone", async || namespaces.get_opt("team").await.unwrap().is_none()).await;
    world
        .until("one pod of the set", async || {
            pods.list(&ListParams::default().labels("app=set")).await.unwrap().items.len() == 1
        })
        .await;
    world.stop().await;
    let facts = Facts::read();
    let calls = std::mem::take(&mut *calls.lock());
    let wrong: BTreeSet<String> = calls
        .iter()
        .filter_map(|call| Some(format!("{}: {}", call.user, facts.judge(call).err()?)))
        .collect();
    let writers: BTreeSet<&str> = calls.iter().filter(|c| c.is_write()).map(|c| c.user.as_str()).collect();
    assert!(writers.len() >= 14, "only these wrote: {writers:?}");
    assert!(
        wrong.is_empty(),
        "{} of {} calls are not known:\n{}",
        wrong.len(),
        calls.len(),
        Vec::from_iter(wrong).join("\n")
    );
    // The facts do tell: a field that there is not, a path that there is not.
    let mut made_up = calls.iter().find(|c| c.method == "POST" && c.path.ends_with("/pods")).unwrap().clone();
    let mut body: Value = serde_json::from_slice(&made_up.body).unwrap();
    body["spec"]["containers"][0]["colour"] = "red".into();
    made_up.body = body.to_string().into_bytes();
    assert!(facts.judge(&made_up).unwrap_err().ends_with("no such field: .spec.containers.colour"));
    made_up.path = "/api/v1/namespaces/default/pods/a/colour".into();
    assert!(facts.judge(&made_up).is_err());
}
