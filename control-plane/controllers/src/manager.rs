//! Starts the shared caches and every controller, each under its own identity.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access;
use crate::attach_detach::AttachDetach;
use crate::autoscaler::{self, AutoscalerController};
use crate::certificates::Sign;
use crate::cron_job::CronJobController;
use crate::daemon_set::DaemonSetController;
use crate::deployment::DeploymentController;
use crate::disruption::DisruptionController;
use crate::endpoint_slice::{EndpointMirror, EndpointSliceController};
use crate::endpoints::EndpointsController;
use crate::events::Recorder;
use crate::garbage::GarbageCollector;
use crate::informers::Informers;
use crate::job::JobController;
use crate::load_balancer::{LoadBalancers, Pool};
use crate::namespace::{NamespaceController, NamespaceDefaults};
use crate::node::{NodeController, Ranges};
use crate::pod_gc::PodCollector;
use crate::quota::QuotaController;
use crate::reconcile::{self, Reconciler};
use crate::replica_set::ReplicaSetController;
use crate::resource_claim::ResourceClaims;
use crate::roll_on_change::RollOnChange;
use crate::service_cidr::ServiceCidrs;
use crate::stateful_set::StatefulSetController;
use crate::ttl_after_finished::TtlAfterFinished;
use crate::view::{PersistentVolume, PersistentVolumeClaim, ReplicaSet, ReplicationController};
use crate::volume::{EphemeralVolumes, Protection, VolumeBinder};
use crate::write::Writer;

/// The identities that [`Options::client_for`] is asked for; `shared-informers` lists and watches for all.
pub const IDENTITIES: [&str; 30] = [
    "shared-informers",
    "replicaset-controller",
    "replication-controller",
    "endpoint-controller",
    "deployment-controller",
    "statefulset-controller",
    "daemon-set-controller",
    "job-controller",
    "cronjob-controller",
    "endpointslice-controller",
    "endpointslicemirroring-controller",
    "persistent-volume-binder",
    "ephemeral-volume-controller",
    "pvc-protection-controller",
    "pv-protection-controller",
    "ttl-after-finished-controller",
    "pod-garbage-collector",
    "service-controller",
    "disruption-controller",
    "horizontal-pod-autoscaler",
    "resourcequota-controller",
    "generic-garbage-collector",
    "namespace-controller",
    "service-account-controller",
    "root-ca-cert-publisher",
    "node-controller",
    "roll-on-change-controller",
    "attachdetach-controller",
    "resource-claim-controller",
    "service-cidrs-controller",
];

/// The most finished pods that are kept.
const FINISHED_PODS: usize = 12_500;

/// How the controllers run.
#[derive(Clone)]
pub struct Options {
    /// The client of an identity; see [`IDENTITIES`].
    pub client_for: Arc<dyn Fn(&str) -> kube::Client + Send + Sync>,
    /// The range of all pods, an IPv4 range; None where something else gives nodes their ranges.
    pub pod_cidr: Option<String>,
    /// Prefix length of a node's part of it.
    pub node_cidr_bits: u8,
    /// The cluster's CA, published in every namespace; None publishes nothing.
    pub root_ca_pem: Option<String>,
    /// Signs certificates; None leaves requests for them to others.
    pub sign: Option<Sign>,
    /// How long a node may be silent before it is unreachable.
    pub node_grace: Duration,
    /// Addresses for Services of type LoadBalancer, an IPv4 range; None gives them none.
    pub load_balancer_range: Option<String>,
    /// How HorizontalPodAutoscalers are looked at.
    pub autoscaler: autoscaler::Options,
}

impl Options {
    /// The options of network profile `loopback`.
    pub fn new(client_for: Arc<dyn Fn(&str) -> kube::Client + Send + Sync>) -> Self {
        Self {
            client_for,
            pod_cidr: Some("127.64.0.0/11".into()),
            node_cidr_bits: 18,
            root_ca_pem: None,
            sign: None,
            node_grace: Duration::from_secs(40),
            load_balancer_range: None,
            autoscaler: autoscaler::Options::default(),
        }
    }
}

/// Runs all controllers until `shutdown`. Fails only on options that cannot be used.
pub async fn run(options: Options, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ranges =
        options.pod_cidr.as_deref().map(|range| Ranges::new(range, options.node_cidr_bits)).transpose();
    let ranges = ranges.context("cannot give nodes their pod ranges")?;
    let client = |name: &str| (options.client_for)(name);
    let writer = |name: &str| Writer::new(client(name));
    let recorder = |name: &str, component: &str| Recorder::new(writer(name), component);
    let caches = Arc::new(Informers::default());
    let garbage = GarbageCollector::new(writer("generic-garbage-collector"));
    let (node, scaler) = ("node-controller", "horizontal-pod-autoscaler");
    let (balancer, roll) = ("service-controller", "roll-on-change-controller");
    let pool = options.load_balancer_range.as_deref().map(|range| {
        Pool::parse(range).with_context(|| format!("{range:?} is no IPv4 range for load balancers"))
    });
    let pool = pool.transpose()?;
    // Most write and tell under one name.
    let own = |name: &str| (writer(name), recorder(name, name));
    macro_rules! make {
        ($controller:ty, $name:literal) => {{
            let (writer, events) = own($name);
            <$controller>::new(caches.clone(), writer, events)
        }};
    }
    let (accounts, publisher) = (writer("service-account-controller"), writer("root-ca-cert-publisher"));
    let controllers: Vec<Arc<dyn Reconciler>> = vec![
        make!(ReplicaSetController<ReplicaSet>, "replicaset-controller"),
        make!(ReplicaSetController<ReplicationController>, "replication-controller"),
        EndpointsController::new(caches.clone(), writer("endpoint-controller")),
        make!(DeploymentController, "deployment-controller"),
        make!(StatefulSetController, "statefulset-controller"),
        make!(DaemonSetController, "daemon-set-controller"),
        make!(JobController, "job-controller"),
        make!(CronJobController, "cronjob-controller"),
        make!(VolumeBinder, "persistent-volume-binder"),
        make!(AttachDetach, "attachdetach-controller"),
        make!(ResourceClaims, "resource-claim-controller"),
        EphemeralVolumes::new(caches.clone(), writer("ephemeral-volume-controller")),
        Protection::<PersistentVolumeClaim>::new(caches.clone(), writer("pvc-protection-controller")),
        Protection::<PersistentVolume>::new(caches.clone(), writer("pv-protection-controller")),
        TtlAfterFinished::new(caches.clone(), writer("ttl-after-finished-controller")),
        PodCollector::new(caches.clone(), writer("pod-garbage-collector"), FINISHED_PODS),
        LoadBalancers::new(caches.clone(), writer(balancer), recorder(balancer, balancer), pool),
        AutoscalerController::new(
            caches.clone(),
            writer(scaler),
            recorder(scaler, scaler),
            options.autoscaler,
        ),
        DisruptionController::new(caches.clone(), writer("disruption-controller")),
        QuotaController::new(caches.clone(), writer("resourcequota-controller")),
        ServiceCidrs::new(caches.clone(), writer("service-cidrs-controller")),
        EndpointSliceController::new(caches.clone(), writer("endpointslice-controller")),
        EndpointMirror::new(caches.clone(), writer("endpointslicemirroring-controller")),
        NamespaceController::new(caches.clone(), writer("namespace-controller")),
        NamespaceDefaults::new(caches.clone(), accounts, publisher, options.root_ca_pem.clone()),
        NodeController::new(caches.clone(), writer(node), recorder(node, node), ranges, options.node_grace),
        RollOnChange::new(caches.clone(), writer(roll), recorder(roll, roll), shutdown.clone()),
        garbage.clone(),
    ];
    caches.start(&client("shared-informers"), &shutdown);
    let mut tasks = JoinSet::new();
    let (client_for, sign, stop) = (options.client_for.clone(), options.sign.clone(), shutdown.clone());
    tasks.spawn(async move { access::run(|name| client_for(name), "shared-informers", sign, stop).await });
    tasks.spawn(garbage.watch(client("generic-garbage-collector"), shutdown.clone()));
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = caches.synced() => {}
    }
    for controller in controllers {
        tasks.spawn(reconcile::run(controller, shutdown.clone()));
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a controller failed")?;
    }
    Ok(())
}
