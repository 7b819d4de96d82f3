//! The caches that all controllers share: one watch a kind.

use std::sync::Arc;

use kube::Client;
use kube::runtime::watcher::Config;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::view::{
    ConfigMap, Deployment, EndpointSlice, Lease, Namespace, Node, Pod, ReplicaSet, Service, ServiceAccount,
};

/// Name of the ConfigMap that holds the cluster's CA.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// Every shared cache.
#[derive(Default)]
pub struct Informers {
    pub pods: Arc<Cache<Pod>>,
    pub replica_sets: Arc<Cache<ReplicaSet>>,
    pub deployments: Arc<Cache<Deployment>>,
    pub nodes: Arc<Cache<Node>>,
    /// Only those of nodes, in `kube-node-lease`.
    pub leases: Arc<Cache<Lease>>,
    pub namespaces: Arc<Cache<Namespace>>,
    pub services: Arc<Cache<Service>>,
    pub slices: Arc<Cache<EndpointSlice>>,
    /// Only those named `default`.
    pub service_accounts: Arc<Cache<ServiceAccount>>,
    /// Only those named [`ROOT_CA`].
    pub root_cas: Arc<Cache<ConfigMap>>,
}

impl Informers {
    /// Starts every watch. Handlers must be registered before.
    pub fn start(&self, client: &Client, shutdown: &CancellationToken) {
        macro_rules! follow {
            ($cache:ident, $config:expr) => {
                tokio::spawn(self.$cache.clone().follow(client.clone(), $config, shutdown.clone()));
            };
        }
        follow!(pods, Config::default());
        follow!(replica_sets, Config::default());
        follow!(deployments, Config::default());
        follow!(nodes, Config::default());
        follow!(leases, Config::default().fields("metadata.namespace=kube-node-lease"));
        follow!(namespaces, Config::default());
        follow!(services, Config::default());
        follow!(slices, Config::default());
        follow!(service_accounts, Config::default().fields("metadata.name=default"));
        follow!(root_cas, Config::default().fields(&format!("metadata.name={ROOT_CA}")));
    }

    /// Waits until every cache holds what the server had at the start.
    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.replica_sets.synced(),
            self.deployments.synced(),
            self.nodes.synced(),
            self.leases.synced(),
            self.namespaces.synced(),
            self.services.synced(),
            self.slices.synced(),
            self.service_accounts.synced(),
            self.root_cas.synced(),
        );
    }
}
