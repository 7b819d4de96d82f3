//! Controllers and scheduler on the real API server, in this process; nodes are played.

#[path = "cluster/behaviours.rs"]
mod behaviours;
#[path = "cluster/killed.rs"]
mod killed;
#[path = "cluster/openapi.rs"]
mod openapi;
#[path = "cluster/proof.rs"]
mod proof;
#[path = "cluster/tap.rs"]
mod tap;
#[path = "cluster/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use world::{World, deployment};

/// A controller without a role would be refused everything: add one to the registry's `authz/defaults.rs`.
#[test]
fn every_identity_has_a_default_role() {
    for identity in coracle_controllers::IDENTITIES.into_iter().chain(coracle_controllers::access::IDENTITIES)
    {
        let roles = coracle_registry::authz::component::roles(identity);
        assert!(!roles.is_empty(), "no default role is bound to the identity {identity}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_lives_and_dies() {
    let world = World::start(2).await;
    let deployments: Api<Deployment> = world.api("default");
    let (pods, sets): (Api<Pod>, Api<ReplicaSet>) = (world.api("default"), world.api("default"));
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
    });
    let post = PostParams::default();
    world
        .api("default")
        .create(&post, &serde_json::from_value::<k8s_openapi::api::core::v1::Service>(service).unwrap())
        .await
        .unwrap();
    deployments.create(&post, &deployment("web", 3)).await.unwrap();
    world.rolled_out("default", "web", 3, "1").await;

    // Bound, behind the Service, and said in Events. Where pods go is the scheduler's to test.
    let list = pods.list(&ListParams::default()).await.unwrap().items;
    assert!(list.len() == 3 && list.iter().all(|p| p.spec.as_ref().unwrap().node_name.is_some()));
    let slices: Api<EndpointSlice> = world.api("default");
    let mine = ListParams::default().labels("kubernetes.io/service-name=web");
    world
        .until("three endpoints", async || {
            let slices = slices.list(&mine).await.unwrap().items;
            let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
            endpoints.filter(|e| e.conditions.as_ref().unwrap().ready == Some(true)).count() == 3
        })
        .await;
    let events: Api<Event> = world.api("default");
    world
        .until("events", async || {
            let said: Vec<String> = events
                .list(&ListParams::default())
                .await
                .unwrap()
                .items
                .into_iter()
                .filter_map(|e| e.message)
                .collect();
            ["Scaled up replica set web-", "Created pod: web-", "Successfully assigned default/web-"]
                .iter()
                .all(|words| said.iter().any(|s| s.starts_with(words)))
        })
        .await;

    // Scale, then a new template.
    let merge = PatchParams::default();
    deployments.patch("web", &merge, &Patch::Merge(json!({ "spec": { "replicas": 5 } }))).await.unwrap();
    world.rolled_out("default", "web", 5, "1").await;
    let image =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "v2" }] } } } });
    deployments.patch("web", &merge, &Patch::Strategic(image)).await.unwrap();
    world.rolled_out("default", "web", 5, "2").await;
    let mut sizes: Vec<_> = sets
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .iter()
        .map(|s| s.spec.as_ref().unwrap().replicas.unwrap())
        .collect();
    sizes.sort();
    assert_eq!(sizes, [0, 5]);

    // A deleted pod is replaced; a deleted Deployment takes everything along.
    let name = pods.list(&ListParams::default()).await.unwrap().items[0].metadata.name.clone().unwrap();
    pods.delete(&name, &DeleteParams::default()).await.unwrap();
    world
        .until("a new pod", async || {
            let list = pods.list(&ListParams::default()).await.unwrap().items;
            list.len() == 5 && list.iter().all(|p| p.metadata.name.as_ref() != Some(&name))
        })
        .await;
    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    world
        .until("nothing left", async || {
            let (d, s, p) = (
                deployments.list(&ListParams::default()).await.unwrap().items.len(),
                sets.list(&ListParams::default()).await.unwrap().items.len(),
                pods.list(&ListParams::default()).await.unwrap().items.len(),
            );
            d + s + p == 0
        })
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_filled_and_emptied() {
    let world = World::start(1).await;
    let namespaces: Api<Namespace> = Api::all(world.client());
    let made = serde_json::from_value(json!({ "metadata": { "name": "team" } })).unwrap();
    namespaces.create(&PostParams::default(), &made).await.unwrap();
    let (accounts, maps): (Api<ServiceAccount>, Api<ConfigMap>) = (world.api("team"), world.api("team"));
    world
        .until("its ServiceAccount and CA", async || {
            accounts.get_opt("default").await.unwrap().is_some()
                && maps.get_opt("kube-root-ca.crt").await.unwrap().is_some()
        })
        .await;
    let deployments: Api<Deployment> = world.api("team");
    deployments.create(&PostParams::default(), &deployment("web", 4)).await.unwrap();
    world.rolled_out("team", "web", 4, "1").await;
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    world.until("the namespace is gone", async || namespaces.get_opt("team").await.unwrap().is_none()).await;
    let pods: Api<Pod> = Api::all(world.client());
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_and_are_adopted() {
    orphans_stay(World::start(1).await).await;
}

/// The collector's own watch of ReplicaSets never begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_that_no_watch_has_shown() {
    let judge: tap::Judge = Arc::new(|call| {
        let watches = call.path.starts_with("/apis/apps/v1/replicasets");
        let lost = watches && call.user.ends_with(":generic-garbage-collector");
        if lost { tap::Fate::Lost } else { tap::Fate::Pass }
    });
    orphans_stay(World::start_judged(1, &judge).await).await;
}

async fn orphans_stay(world: World) {
    let deployments: Api<Deployment> = world.api("default");
    let sets: Api<ReplicaSet> = world.api("default");
    deployments.create(&PostParams::default(), &deployment("web", 2)).await.unwrap();
    world.rolled_out("default", "web", 2, "1").await;
    deployments.delete("web", &DeleteParams::orphan()).await.unwrap();
    world
        .until("the ReplicaSet is an orphan", async || {
            let list = sets.list(&ListParams::default()).await.unwrap().items;
            deployments.get_opt("web").await.unwrap().is_none()
                && list.len() == 1
                && list[0].metadata.owner_references.as_ref().is_none_or(|o| o.is_empty())
        })
        .await;
    let before = sets.list(&ListParams::default()).await.unwrap().items[0].metadata.uid.clone();
    deployments.create(&PostParams::default(), &deployment("web", 2)).await.unwrap();
    world.rolled_out("default", "web", 2, "1").await;
    let list = sets.list(&ListParams::default()).await.unwrap().items;
    assert_eq!((list.len(), &list[0].metadata.uid), (1, &before), "adopted, not made anew");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unschedulable_pods_say_why_and_wait() {
    let world = World::start(1).await;
    let pods: Api<Pod> = world.api("default");
    let pod = json!({ "metadata": { "name": "big" }, "spec": { "containers": [{ "name": "c", "image": "v1", "resources": { "requests": { "cpu": "64" } } }] } });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    world
        .until("the condition", async || {
            let status = pods.get("big").await.unwrap().status.unwrap_or_default();
            status.conditions.iter().flatten().any(|c| {
                c.type_ == "PodScheduled"
                    && c.status == "False"
                    && c.reason.as_deref() == Some("Unschedulable")
                    && c.message.as_deref().is_some_and(|m| {
                        m.starts_with("0/1 nodes are available: 1 Insufficient cpu. preemption: ")
                    })
            })
        })
        .await;
    let nodes: Api<Node> = Api::all(world.client());
    let more = json!({ "status": { "allocatable": { "cpu": "100" } } });
    nodes.patch_status("node-0", &PatchParams::default(), &Patch::Merge(more)).await.unwrap();
    world
        .until("it is bound", async || pods.get("big").await.unwrap().spec.unwrap().node_name.is_some())
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_rolls_when_its_configuration_changes() {
    let world = World::start(1).await;
    let (maps, merge): (Api<ConfigMap>, PatchParams) = (world.api("default"), PatchParams::default());
    let map =
        serde_json::from_value(json!({ "metadata": { "name": "settings" }, "data": { "colour": "red" } }));
    maps.create(&PostParams::default(), &map.unwrap()).await.unwrap();
    let deployments: Api<Deployment> = world.api("default");
    for (name, asks) in [("rolls", "true"), ("stays", "false")] {
        let mut d = deployment(name, 2);
        d.metadata.annotations = Some([("coracle.dev/roll-on-change".to_string(), asks.to_string())].into());
        let from = json!([{ "configMapRef": { "name": "settings" } }]);
        let pod = d.spec.as_mut().unwrap().template.spec.as_mut().unwrap();
        pod.containers[0].env_from = serde_json::from_value(from).unwrap();
        deployments.create(&PostParams::default(), &d).await.unwrap();
        world.rolled_out("default", name, 2, "1").await;
    }
    world
        .until("what it uses is known", async || {
            let annotations =
                deployments.get("rolls").await.unwrap().metadata.annotations.unwrap_or_default();
            annotations.contains_key("coracle.dev/configuration-hash")
        })
        .await;
    maps.patch("settings", &merge, &Patch::Merge(json!({ "metadata": { "labels": { "a": "b" } } })))
        .await
        .unwrap();
    maps.patch("settings", &merge, &Patch::Merge(json!({ "data": { "colour": "blue" } }))).await.unwrap();
    world.rolled_out("default", "rolls", 2, "2").await;
    world.rolled_out("default", "stays", 2, "1").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pods() {
    let world = World::start(4).await;
    let deployments: Api<Deployment> = world.api("default");
    let start = Instant::now();
    deployments.create(&PostParams::default(), &deployment("web", 1000)).await.unwrap();
    let pods: Api<Pod> = world.api("default");
    let mut made = None;
    world
        .until("a thousand bound pods", async || {
            let list = pods.list(&ListParams::default()).await.unwrap().items;
            assert!(list.len() <= 1000, "{} pods", list.len());
            if list.len() == 1000 {
                made.get_or_insert(start.elapsed());
            }
            list.len() == 1000 && list.iter().all(|p| p.spec.as_ref().unwrap().node_name.is_some())
        })
        .await;
    println!("1,000 pods made in {made:?}, bound in {:?}", start.elapsed());
    world.rolled_out("default", "web", 1000, "1").await;
    println!("ready in {:?}", start.elapsed());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_hollow_nodes() {
    let start = Instant::now();
    let world = World::start(1000).await;
    println!("1,000 nodes are there after {:?}", start.elapsed());
    let deployments: Api<Deployment> = world.api("default");
    let start = Instant::now();
    deployments.create(&PostParams::default(), &deployment("web", 1000)).await.unwrap();
    world.rolled_out("default", "web", 1000, "1").await;
    println!("1,000 pods are ready after {:?}", start.elapsed());
    let pods = world.api::<Pod>("default").list(&ListParams::default()).await.unwrap().items;
    let mut on: std::collections::HashMap<String, usize> = Default::default();
    for pod in &pods {
        *on.entry(pod.spec.as_ref().unwrap().node_name.clone().unwrap()).or_default() += 1;
    }
    assert_eq!(pods.len(), 1000);
    // One each would be best; where not all nodes are looked at for each pod it is a little less even.
    assert!(
        on.len() > 400 && on.values().all(|count| *count <= 8),
        "{} nodes, {:?}",
        on.len(),
        on.values().max()
    );
    let silent = Api::<Node>::all(world.client()).list(&ListParams::default()).await.unwrap().items;
    assert!(silent.iter().all(|node| node.spec.as_ref().is_none_or(|spec| spec.taints.is_none())));
    world.stop().await;
}
