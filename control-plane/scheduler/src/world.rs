//! What decisions depend on besides pods and nodes: volumes, claims, classes, and the labels of namespaces.

use std::sync::Arc;

use coracle_api::labels::Selector;
use coracle_controllers::cache::{Cache, Cached};
use coracle_controllers::view::{
    CsiNode, DeviceClass, Meta, Namespace, PersistentVolume, PersistentVolumeClaim, PodDisruptionBudget,
    PodGroup, ResourceClaim, ResourceSlice, StorageClass,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::devices::{Grant, Promised};

/// Caches that are read while a node is chosen.
#[derive(Clone, Default)]
pub struct World {
    pub namespaces: Arc<Cache<Namespace>>,
    pub volumes: Arc<Cache<PersistentVolume>>,
    pub claims: Arc<Cache<PersistentVolumeClaim>>,
    pub classes: Arc<Cache<StorageClass>>,
    pub budgets: Arc<Cache<PodDisruptionBudget>>,
    pub csi_nodes: Arc<Cache<CsiNode>>,
    pub resource_claims: Arc<Cache<ResourceClaim>>,
    pub resource_slices: Arc<Cache<ResourceSlice>>,
    pub device_classes: Arc<Cache<DeviceClass>>,
    pub pod_groups: Arc<Cache<PodGroup>>,
    /// Devices that were decided on and that the API does not show yet.
    pub promised: Arc<Mutex<Promised>>,
}

/// Something changed that may help a pod: those that wait for volumes or devices, those with this claim, or those of this
/// group (`namespace/name`).
#[derive(Debug, PartialEq)]
pub enum Changed {
    Volumes,
    Devices,
    Claim(String),
    Group(String),
}

impl World {
    /// Watches until `shutdown`, and tells what may help a waiting pod. Returns when everything is known.
    pub async fn start(
        &self,
        client: &Client,
        changed: mpsc::UnboundedSender<Changed>,
        shutdown: &CancellationToken,
    ) {
        fn any<K: Cached>(cache: &Cache<K>, changed: &mpsc::UnboundedSender<Changed>) {
            let changed = changed.clone();
            cache.on_change(move |_, _| drop(changed.send(Changed::Volumes)));
        }
        fn for_devices<K: Cached>(cache: &Cache<K>, changed: &mpsc::UnboundedSender<Changed>) {
            let changed = changed.clone();
            cache.on_change(move |_, _| drop(changed.send(Changed::Devices)));
        }
        any(&self.volumes, &changed);
        any(&self.classes, &changed);
        any(&self.csi_nodes, &changed);
        for_devices(&self.resource_slices, &changed);
        for_devices(&self.device_classes, &changed);
        let (promised, told) = (self.promised.clone(), changed.clone());
        self.resource_claims.on_change(move |old, new| {
            let has = |claim: Option<&Arc<ResourceClaim>>| claim.map(|c| c.status.allocation.is_some());
            if let Some(claim) = new.or(old).filter(|_| has(new) != Some(false)) {
                promised.lock().remove(claim.uid());
            }
            if has(old) != has(new) {
                drop(told.send(Changed::Devices));
            }
        });
        let told = changed.clone();
        self.pod_groups.on_change(move |_, new| {
            if let Some(group) = new {
                drop(told.send(Changed::Group(format!("{}/{}", group.namespace(), group.name()))));
            }
        });
        self.claims.on_change(move |old, new| {
            // Claims are written often by others; only what is new, bound or gone may help.
            let bound = |claim: Option<&Arc<PersistentVolumeClaim>>| claim.map(|c| is_bound(c));
            if let Some(claim) = new.or(old).filter(|_| bound(old) != bound(new)) {
                drop(changed.send(Changed::Claim(format!("{}/{}", claim.namespace(), claim.name()))));
            }
        });
        macro_rules! follow {
            ($($cache:ident),*) => {$(
                tokio::spawn(self.$cache.clone().follow(client.clone(), Config::default(), shutdown.clone()));
            )*};
        }
        follow!(namespaces, volumes, claims, classes, budgets, csi_nodes);
        follow!(resource_claims, resource_slices, device_classes, pod_groups);
        // Kubernetes serves groups of pods when it is asked to; where they cannot be had they are not waited for.
        let groups = may_list_groups(client).await;
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = async {
                self.namespaces.synced().await;
                self.volumes.synced().await;
                self.claims.synced().await;
                self.classes.synced().await;
                self.budgets.synced().await;
                self.csi_nodes.synced().await;
                self.resource_claims.synced().await;
                self.resource_slices.synced().await;
                self.device_classes.synced().await;
                if groups {
                    self.pod_groups.synced().await;
                }
            } => {}
        }
    }

    /// Devices that were decided on are free again.
    pub fn forget_promises(&self, grants: &[Grant]) {
        let mut promised = self.promised.lock();
        // A grant without an allocation shares what was promised to another pod.
        for grant in grants.iter().filter(|grant| grant.allocation.is_some()) {
            promised.remove(grant.claim.uid());
        }
    }

    /// Whether a namespace's labels match.
    pub fn namespace_matches(&self, selector: &Selector, namespace: &str) -> bool {
        self.namespaces.get(namespace).is_some_and(|n| selector.matches(|key| n.label(key)))
    }
}

/// Whether the server has groups of pods and shows them; assumed where it cannot be asked.
async fn may_list_groups(client: &Client) -> bool {
    let found = Api::<PodGroup>::all(client.clone()).list_metadata(&ListParams::default().limit(1)).await;
    !matches!(found, Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404))
}

/// Whether a claim has its volume and both agree.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.volume().is_some() && claim.annotation("pv.kubernetes.io/bind-completed").is_some()
}

/// A label selector; None (an absent one) matches nothing, an unreadable one neither.
pub fn selector(of: Option<&LabelSelector>) -> Selector {
    let Some(of) = of else { return Selector::nothing() };
    let value = serde_json::to_value(of).unwrap_or_default();
    Selector::from_label_selector(&value).unwrap_or_else(|_| Selector::nothing())
}
