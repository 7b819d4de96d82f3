//! Controllers are killed after each of their writes, whose answer is lost, and others go on: what was asked for comes
//! about, and nothing twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::tap::{Call, Fate, Judge};
use crate::world::{World, deployment, nobody};

/// Counts the writes that matter, and lets the one of this number be the last.
struct Killer {
    writes: AtomicUsize,
    last: usize,
    dead: Notify,
}

impl Killer {
    fn new(last: usize) -> Arc<Self> {
        Arc::new(Self { writes: AtomicUsize::new(0), last, dead: Notify::new() })
    }

    fn judge(self: &Arc<Self>) -> Judge {
        let own = self.clone();
        Arc::new(move |call: &Call| {
            let workload = ["deployment", "replicaset", "job", "cronjob"];
            let matters = call.is_write()
                && !call.path.contains("/events")
                && workload.iter().any(|name| call.user.ends_with(&format!(":{name}-controller")));
            let count = if matters {
                own.writes.fetch_add(1, Ordering::SeqCst) + 1
            } else {
                own.writes.load(Ordering::SeqCst)
            };
            if count < own.last || (count == own.last && !matters && own.last == 0) {
                return Fate::Pass;
            }
            if count == own.last && matters {
                own.dead.notify_one();
                return Fate::Unanswered;
            }
            Fate::Lost
        })
    }
}

/// A rollout of a Deployment and a Job, with controllers that die after so many writes. How many writes there were, none
/// dying.
async fn roll_out(kill_at: Option<usize>) -> usize {
    let killer = Killer::new(kill_at.unwrap_or(usize::MAX));
    let mut world = World::without_controllers().await;
    let stop = CancellationToken::new();
    let first = tokio::spawn(coracle_controllers::run(world.options(&killer.judge()), stop.clone()));
    let survivor = CancellationToken::new();
    let options = world.options(&nobody());
    let (own, end) = (killer.clone(), survivor.clone());
    let second = tokio::spawn(async move {
        tokio::select! {
            () = own.dead.notified() => {}
            () = end.cancelled() => return,
        }
        stop.cancel();
        first.abort();
        coracle_controllers::run(options, end).await.unwrap();
    });
    world.add_nodes(1).await;
    let deployments: Api<Deployment> = world.api("default");
    let post = PostParams::default();
    deployments.create(&post, &deployment("web", 2)).await.unwrap();
    let job = json!({ "metadata": { "name": "once" }, "spec": { "completions": 2, "parallelism": 1, "template": {
        "metadata": { "labels": { "app": "once" } },
        "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "v1" }] },
    } } });
    let jobs: Api<Job> = world.api("default");
    jobs.create(&post, &serde_json::from_value(job).unwrap()).await.unwrap();
    world.rolled_out("default", "web", 2, "1").await;
    let image =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(image)).await.unwrap();
    world.rolled_out("default", "web", 2, "2").await;
    world
        .until("the Job is complete", async || {
            let status = jobs.get("once").await.unwrap().status.unwrap_or_default();
            status.conditions.iter().flatten().any(|c| c.type_ == "Complete" && c.status == "True")
        })
        .await;
    let (pods, sets): (Api<Pod>, Api<ReplicaSet>) = (world.api("default"), world.api("default"));
    let of = async |app: &str| {
        let labels = ListParams::default().labels(&format!("app={app}"));
        pods.list(&labels).await.unwrap().items
    };
    world.until("two pods", async || of("web").await.len() == 2).await;
    assert_eq!(of("once").await.len(), 2, "killed at {kill_at:?}: each completion is one pod");
    let done = jobs.get("once").await.unwrap().status.unwrap();
    assert_eq!((done.succeeded, done.failed.unwrap_or(0)), (Some(2), 0), "killed at {kill_at:?}");
    assert_eq!(sets.list(&ListParams::default()).await.unwrap().items.len(), 2, "killed at {kill_at:?}");
    world
        .until("no pod is held", async || {
            of("once").await.iter().all(|p| p.metadata.finalizers.as_ref().is_none_or(|f| f.is_empty()))
        })
        .await;
    survivor.cancel();
    drop(second.await);
    let writes = killer.writes.load(Ordering::SeqCst);
    world.stop().await;
    writes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_killed_at_every_step_converge() {
    let steps = roll_out(None).await;
    assert!(steps > 15, "only {steps} writes");
    // Four at a time; one killed later than the last write dies not at all.
    for chunk in (1..=steps).collect::<Vec<_>>().chunks(4) {
        futures::future::join_all(chunk.iter().map(|step| roll_out(Some(*step)))).await;
    }
}
