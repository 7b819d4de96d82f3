//! An API server, all controllers, the scheduler, and nodes that say of every pod that it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_apiserver::{ApiServer, UserInfo};
use coracle_registry::RegistryOptions;
use coracle_registry::authz::component;
use coracle_store::Store;
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    server: ApiServer,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

/// A Deployment with a named port.
pub fn deployment(name: &str, replicas: i32) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "v1", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            },
        },
    }))
    .unwrap()
}

impl World {
    pub async fn start(nodes: usize) -> Self {
        let store = Store::in_memory(&coracle_store::Options::new("unused"));
        let options = RegistryOptions::default();
        let builtin = coracle_registry::builtin(&options, &store).unwrap();
        let server = builtin.install(ApiServer::builder(Arc::new(store))).build();
        coracle_registry::bootstrap(&server, &options).await.unwrap();
        let mut world = Self { server, shutdown: CancellationToken::new(), tasks: JoinSet::new() };
        let server = world.server.clone();
        let client_for =
            move |name: &str| Client::new(server.service_as(component::controller(name)), "default");
        let mut options = coracle_controllers::Options::new(Arc::new(client_for));
        options.root_ca_pem = Some("a certificate".into());
        let shutdown = world.shutdown.clone();
        world.tasks.spawn(async move { coracle_controllers::run(options, shutdown).await.unwrap() });
        let scheduler = Client::new(world.server.service_as(component::scheduler()), "default");
        let shutdown = world.shutdown.clone();
        world.tasks.spawn(async move {
            coracle_scheduler::run(scheduler, Default::default(), shutdown).await.unwrap()
        });
        for i in 0..nodes {
            world.add_node(&format!("node-{i}")).await;
        }
        let (client, shutdown) = (world.client(), world.shutdown.clone());
        world.tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = play_nodes(client) => {}
            }
        });
        world
    }

    async fn add_node(&self, name: &str) {
        let nodes: Api<Node> = Api::all(self.client());
        let node = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let status = json!({ "status": {
            "allocatable": { "cpu": "8", "memory": "16Gi", "pods": "1000" },
            "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": now, "lastTransitionTime": now }],
        } });
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        self.until("a pod range and no taint", async || {
            let spec = nodes.get(name).await.unwrap().spec.unwrap_or_default();
            spec.pod_cidr.is_some() && spec.taints.is_none_or(|t| t.is_empty())
        })
        .await;
    }

    pub fn client(&self) -> Client {
        Client::new(self.server.service_as(UserInfo::new("admin", &["system:masters"])), "default")
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client(), namespace)
    }

    /// Waits until `is` holds; fails after a minute.
    pub async fn until(&self, what: &str, mut is: impl AsyncFnMut() -> bool) {
        let start = Instant::now();
        while !is().await {
            assert!(start.elapsed() < PATIENCE, "waited too long for: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a rollout is complete, as `kubectl rollout status` does, and checks its revision.
    pub async fn rolled_out(&self, namespace: &str, name: &str, replicas: i32, revision: &str) {
        let deployments: Api<Deployment> = self.api(namespace);
        self.until(&format!("rollout of {name} to {replicas}"), async || {
            let d = deployments.get(name).await.unwrap();
            let s = d.status.unwrap_or_default();
            s.observed_generation == d.metadata.generation
                && s.replicas == Some(replicas)
                && s.updated_replicas == Some(replicas)
                && s.available_replicas == Some(replicas)
                && s.conditions.iter().flatten().any(|c| c.type_ == "Available" && c.status == "True")
                && d.metadata
                    .annotations
                    .iter()
                    .flatten()
                    .any(|(k, v)| k == "deployment.kubernetes.io/revision" && v == revision)
        })
        .await;
    }

    pub async fn stop(mut self) {
        self.shutdown.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

// Every bound pod runs and is ready at once; every pod that is being deleted ends at once.
async fn play_nodes(client: Client) {
    let all: Api<Pod> = Api::all(client.clone());
    let mut address: u32 = u32::from(std::net::Ipv4Addr::new(127, 64, 0, 2));
    let mut events = watcher(all, watcher::Config::default()).default_backoff().applied_objects().boxed();
    while let Some(Ok(pod)) = events.next().await {
        let (name, namespace) = (pod.metadata.name.unwrap(), pod.metadata.namespace.unwrap());
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let status = pod.status.unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            // Gone already is fine.
            drop(pods.delete(&name, &DeleteParams::default().grace_period(0)).await);
        } else if pod.spec.and_then(|s| s.node_name).is_some() && status.pod_ip.is_none() {
            address += 1;
            let (ip, now) = (
                std::net::Ipv4Addr::from(address).to_string(),
                jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            );
            let body = json!({ "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": now }],
            } });
            drop(pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(body)).await);
        }
    }
}
