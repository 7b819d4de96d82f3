//! The caches that all controllers share: one watch a kind.

use std::sync::Arc;

use kube::Client;
use kube::runtime::watcher::Config;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;
use crate::view::{
    ConfigMap, ControllerRevision, CronJob, CsiDriver, DaemonSet, Deployment, EndpointSlice, Endpoints,
    HorizontalPodAutoscaler, IpAddress, Job, Lease, Namespace, Node, PersistentVolume, PersistentVolumeClaim,
    Pod, PodDisruptionBudget, ReplicaSet, ReplicationController, ResourceClaim, ResourceClaimTemplate,
    ResourceQuota, Service, ServiceAccount, ServiceCidr, StatefulSet, StorageClass, VolumeAttachment,
};

/// Name of the ConfigMap that holds the cluster's CA.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// Makes the struct of caches, each with the fields by which its watch is narrowed.
macro_rules! informers {
    ($($(#[$doc:meta])* $cache:ident: $kind:ty $(, $fields:expr)?;)*) => {
        /// Every shared cache.
        #[derive(Default)]
        pub struct Informers {
            $($(#[$doc])* pub $cache: Arc<Cache<$kind>>,)*
        }

        impl Informers {
            /// Starts every watch. Handlers must be registered before.
            pub fn start(&self, client: &Client, shutdown: &CancellationToken) {
                $(
                    let config = Config::default()$(.fields(&$fields))?;
                    tokio::spawn(self.$cache.clone().follow(client.clone(), config, shutdown.clone()));
                )*
            }

            /// Waits until every cache holds what the server had at the start.
            pub async fn synced(&self) {
                $(self.$cache.synced().await;)*
            }
        }
    };
}

informers! {
    pods: Pod;
    replica_sets: ReplicaSet;
    deployments: Deployment;
    stateful_sets: StatefulSet;
    daemon_sets: DaemonSet;
    revisions: ControllerRevision;
    replication_controllers: ReplicationController;
    jobs: Job;
    cron_jobs: CronJob;
    nodes: Node;
    /// Only those of nodes, in `kube-node-lease`.
    leases: Lease, "metadata.namespace=kube-node-lease";
    namespaces: Namespace;
    services: Service;
    slices: EndpointSlice;
    endpoints: Endpoints;
    /// Only those named `default`.
    service_accounts: ServiceAccount, "metadata.name=default";
    /// Only those named [`ROOT_CA`].
    root_cas: ConfigMap, format!("metadata.name={ROOT_CA}");
    volumes: PersistentVolume;
    claims: PersistentVolumeClaim;
    storage_classes: StorageClass;
    attachments: VolumeAttachment;
    drivers: CsiDriver;
    resource_claims: ResourceClaim;
    claim_templates: ResourceClaimTemplate;
    autoscalers: HorizontalPodAutoscaler;
    budgets: PodDisruptionBudget;
    quotas: ResourceQuota;
    service_cidrs: ServiceCidr;
    ip_addresses: IpAddress;
}
