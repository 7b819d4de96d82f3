//! What the API server has of what the network is made of, kept by watches.

use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSpec, PodStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{Notify, watch};

use crate::plan::{self, Objects, Settings};

/// How long an API server that may not know policies is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The objects, and when they change.
#[derive(Clone)]
pub struct Cache {
    pub services: Store<Service>,
    pub slices: Store<EndpointSlice>,
    policies: Store<NetworkPolicy>,
    pods: Store<Pod>,
    namespaces: Store<Namespace>,
    /// Pods and namespaces are watched once a policy asks for them.
    wanted: Arc<Notify>,
    changes: watch::Receiver<u64>,
}

impl Cache {
    /// A cache, and the watches that fill it as long as they are polled.
    pub fn new(client: &Client) -> (Self, impl Future<Output = ()>) {
        let (changed, changes) = watch::channel(0_u64);
        let wanted = Arc::new(Notify::new());
        let (services, watch_services) = reflect::<Service>(client, changed.clone(), |_| {});
        let (slices, watch_slices) = reflect::<EndpointSlice>(client, changed.clone(), |_| {});
        let (policies, watch_policies) = reflect::<NetworkPolicy>(client, changed.clone(), |_| {});
        let (pods, watch_pods) = reflect::<Pod>(client, changed.clone(), strip);
        let (namespaces, watch_namespaces) = reflect::<Namespace>(client, changed, |_| {});
        let gate = wanted.clone();
        let drive = async move {
            let selected = async {
                gate.notified().await;
                futures::join!(watch_pods, watch_namespaces);
            };
            futures::join!(watch_services, watch_slices, watch_policies, selected);
        };
        (Self { services, slices, policies, pods, namespaces, wanted, changes }, drive)
    }

    /// Waits until the first lists are in.
    pub async fn ready(&self) -> anyhow::Result<()> {
        self.services.wait_until_ready().await?;
        self.slices.wait_until_ready().await?;
        if tokio::time::timeout(PATIENCE, self.policies.wait_until_ready()).await.is_err() {
            tracing::warn!("network policies cannot be watched yet");
        }
        Ok(())
    }

    /// Changes of any of them from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        changes
    }

    /// The table of now.
    pub async fn table(&self, settings: &Settings) -> anyhow::Result<coracle_cri_api::network::Table> {
        let policies = self.policies.state();
        if !policies.is_empty() {
            self.wanted.notify_one();
            self.pods.wait_until_ready().await?;
            self.namespaces.wait_until_ready().await?;
        }
        let (services, slices) = (self.services.state(), self.slices.state());
        let (pods, namespaces) = (self.pods.state(), self.namespaces.state());
        let objects = Objects {
            services: services.iter().map(AsRef::as_ref).collect(),
            slices: slices.iter().map(AsRef::as_ref).collect(),
            pods: pods.iter().map(AsRef::as_ref).collect(),
            namespaces: namespaces.iter().map(AsRef::as_ref).collect(),
            policies: policies.iter().map(AsRef::as_ref).collect(),
        };
        Ok(plan::table(&objects, settings))
    }
}

/// A store of all objects of a kind, and the watch that fills it.
pub fn reflect<K>(
    client: &Client,
    changed: watch::Sender<u64>,
    strip: fn(&mut K),
) -> (Store<K>, impl Future<Output = ()>)
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<K>::all(client.clone()), watcher::Config::default()).default_backoff();
    let stream = stream.modify(move |object| {
        object.managed_fields_mut().clear();
        strip(object);
    });
    let drive = reflector::reflector(writer, stream).for_each(move |event| {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => changed.send_modify(|n| *n += 1),
            Err(error) => tracing::debug!(%error, kind = std::any::type_name::<K>(), "watch interrupted"),
        }
        futures::future::ready(())
    });
    (store, drive)
}

/// Leaves of a pod what policies ask about.
fn strip(pod: &mut Pod) {
    pod.metadata.annotations = None;
    pod.metadata.owner_references = None;
    if let Some(spec) = pod.spec.take() {
        let ports = |c: Container| Container { name: c.name, ports: c.ports, ..Container::default() };
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            host_network: spec.host_network,
            containers: spec.containers.into_iter().map(ports).collect(),
            ..PodSpec::default()
        });
    }
    if let Some(status) = pod.status.take() {
        pod.status = Some(PodStatus { phase: status.phase, pod_ip: status.pod_ip, ..PodStatus::default() });
    }
}
