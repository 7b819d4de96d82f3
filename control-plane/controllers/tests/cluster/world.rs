//! An API server, all controllers, the scheduler, and nodes that say of every pod that it runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_apiserver::{ApiServer, UserInfo};
use coracle_controllers::hollow;
use coracle_registry::RegistryOptions;
use coracle_registry::authz::component;
use coracle_store::Store;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::tap::{self, Fate, Judge};

const PATIENCE: Duration = Duration::from_secs(180);

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

/// A judge that lets every call pass.
pub fn nobody() -> Judge {
    Arc::new(|_| Fate::Pass)
}

impl World {
    pub async fn start(nodes: usize) -> Self {
        Self::start_judged(nodes, &nobody()).await
    }

    /// With a judge of the controllers' calls.
    pub async fn start_judged(nodes: usize, judge: &Judge) -> Self {
        let mut world = Self::without_controllers().await;
        let (options, shutdown) = (world.options(judge), world.shutdown.clone());
        world.tasks.spawn(async move { coracle_controllers::run(options, shutdown).await.unwrap() });
        world.add_nodes(nodes).await;
        world
    }

    /// A server and a scheduler.
    pub async fn without_controllers() -> Self {
        let store = Store::in_memory(&coracle_store::Options::new("unused"));
        let options = RegistryOptions::default();
        let builtin = coracle_registry::builtin(&options, &store).unwrap();
        let server = builtin.install(ApiServer::builder(Arc::new(store))).build();
        coracle_registry::bootstrap(&server, &options).await.unwrap();
        let mut world = Self { server, shutdown: CancellationToken::new(), tasks: JoinSet::new() };
        let scheduler = Client::new(world.server.service_as(component::scheduler()), "default");
        let shutdown = world.shutdown.clone();
        world.tasks.spawn(async move {
            coracle_scheduler::run(scheduler, Default::default(), shutdown).await.unwrap()
        });
        world
    }

    /// Options of controllers whose calls are judged.
    pub fn options(&self, judge: &Judge) -> coracle_controllers::Options {
        let (server, judge) = (self.server.clone(), judge.clone());
        let client_for = move |name: &str| tap::client(&server, component::controller(name), &judge);
        let mut options = coracle_controllers::Options::new(Arc::new(client_for));
        options.root_ca_pem = Some("a certificate".into());
        options
    }

    /// A candidate for the controllers' Lease.
    pub fn candidate(&self, identity: &str) -> coracle_controllers::election::Candidate {
        let user = component::controller(component::INFORMERS);
        coracle_controllers::election::Candidate {
            client: Client::new(self.server.service_as(user), "default"),
            name: "kube-controller-manager",
            identity: identity.into(),
        }
    }

    /// Hollow nodes, named `node-0` and on.
    pub async fn add_nodes(&mut self, count: usize) {
        let options = hollow::Options {
            prefix: "node".into(),
            allocatable: json!({ "cpu": "8", "memory": "16Gi", "pods": "1000" }),
            ..hollow::Options::new(count)
        };
        let (client, shutdown) = (self.client(), self.shutdown.clone());
        self.tasks.spawn(async move { hollow::run(client, options, drop, shutdown).await.unwrap() });
        let nodes: Api<Node> = Api::all(self.client());
        self.until("nodes without taints", async || {
            let all = nodes.list(&Default::default()).await.unwrap().items;
            let free = |n: &Node| {
                let spec = n.spec.clone().unwrap_or_default();
                let ready = n.status.as_ref().is_some_and(|s| s.conditions.is_some());
                ready && spec.taints.is_none_or(|t| t.is_empty())
            };
            all.len() == count && all.iter().all(free)
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

    /// Waits until `is` holds; fails after three minutes.
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
