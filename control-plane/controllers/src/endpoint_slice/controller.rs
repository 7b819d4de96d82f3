//! Carries out the plan of a Service's slices.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;

use super::plan::{Action, MANAGED_BY, MANAGER, plan};
use super::topology::{ZONE, Zones};
use crate::cache::{Key, key, key_of};
use crate::informers::Informers;
use crate::queue::WorkQueue;
use crate::reconcile::Reconciler;
use crate::view::{EndpointSlice, Meta, Node, Pod, SERVICE_NAME_LABEL, Service, condition};
use crate::write::{self, Delete, Writer};

/// Keeps the slices of every Service with a selector.
pub struct EndpointSliceController {
    caches: Arc<Informers>,
    writer: Writer,
    queue: WorkQueue,
    /// Where nodes are.
    zones: Mutex<Arc<Zones>>,
}

impl EndpointSliceController {
    /// Registers its handlers.
    pub fn new(caches: Arc<Informers>, writer: Writer) -> Arc<Self> {
        let this = Arc::new(Self {
            caches: caches.clone(),
            writer,
            queue: WorkQueue::new(),
            zones: Mutex::default(),
        });
        let own = this.clone();
        caches.services.on_change(move |old, new| {
            if let Some(service) = new.or(old) {
                own.queue.add(key_of(service.as_ref()));
            }
        });
        let own = this.clone();
        caches.pods.on_change(move |old, new| {
            for pod in old.into_iter().chain(new) {
                own.wake(pod);
            }
        });
        let own = this.clone();
        caches.nodes.on_change(move |old, new| {
            // Heartbeats move no node.
            let place = |n: &Arc<Node>| {
                let ready = condition(&n.status.conditions, "Ready").map(|c| c.status.clone());
                (n.label(ZONE).map(String::from), n.status.allocatable.get("cpu").cloned(), ready)
            };
            if old.map(place) == new.map(place) {
                return;
            }
            let zones = Arc::new(Zones::of_nodes(&own.caches.nodes.all()));
            if *own.zones.lock() != zones {
                *own.zones.lock() = zones;
                own.caches.services.all().iter().for_each(|s| own.queue.add(key_of(s.as_ref())));
            }
        });
        let own = this.clone();
        caches.slices.on_change(move |old, new| {
            if let Some(slice) = new.or(old).filter(|s| s.label(MANAGED_BY) == Some(MANAGER))
                && let Some(service) = slice.label(SERVICE_NAME_LABEL)
            {
                own.queue.add(key(slice.namespace(), service));
            }
        });
        this
    }

    fn wake(&self, pod: &Pod) {
        for service in self.caches.services.by(&format!("namespace:{}", pod.namespace())) {
            if selects(&service, pod) {
                self.queue.add(key_of(service.as_ref()));
            }
        }
    }
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.selector.as_ref().filter(|s| !s.is_empty());
    selector.is_some_and(|s| s.iter().all(|(k, v)| pod.label(k) == Some(v)))
}

#[async_trait]
impl Reconciler for EndpointSliceController {
    fn name(&self) -> &'static str {
        "endpointslice-controller"
    }

    fn queue(&self) -> &WorkQueue {
        &self.queue
    }

    async fn reconcile(&self, key: &Key) -> anyhow::Result<Option<Duration>> {
        let mut slices = self.caches.slices.by(&format!("service:{key}"));
        slices.retain(|s| s.label(MANAGED_BY) == Some(MANAGER));
        let service = self.caches.services.get(key);
        let Some(service) = service.filter(|s| s.spec.selector.as_ref().is_some_and(|m| !m.is_empty()))
        else {
            // Slices of a Service that is gone go with their owner; a manual Service keeps its own.
            return Ok(None);
        };
        if service.is_terminating() || service.spec.type_.as_deref() == Some("ExternalName") {
            return Ok(None);
        }
        let pods = self.caches.pods.by(&format!("namespace:{}", service.namespace()));
        let pods: Vec<Arc<Pod>> = pods.into_iter().filter(|p| selects(&service, p)).collect();
        let zones = self.zones.lock().clone();
        for action in plan(&service, &pods, &slices, &zones) {
            act(&self.caches, &self.writer, service.namespace(), action).await?;
        }
        Ok(None)
    }
}

/// Writes slices.
pub(super) async fn act(
    caches: &Informers,
    writer: &Writer,
    namespace: &str,
    action: Action,
) -> write::Result<()> {
    let path = |name: &str| write::path::<EndpointSlice>(namespace, name);
    let body = |slice: &EndpointSlice| {
        let mut body = json!(slice);
        body["apiVersion"] = "discovery.k8s.io/v1".into();
        body["kind"] = "EndpointSlice".into();
        body
    };
    match action {
        Action::Create(slice) => match writer.create(&path(""), &body(&slice)).await {
            Err(error) if write::is_namespace_terminating(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(made) => {
                // At once into the cache: the next look must not create it again.
                let mut slice = *slice;
                slice.metadata.name = Some(made.metadata.name);
                slice.metadata.uid = Some(made.metadata.uid);
                slice.metadata.resource_version = Some(made.metadata.resource_version);
                if caches.slices.get(&key_of(&slice)).is_none() {
                    caches.slices.apply(slice);
                }
                Ok(())
            }
        },
        Action::Update(slice) => match writer.replace(&path(slice.name()), &body(&slice)).await {
            Err(error) if write::is_not_found(&error) => {
                caches.slices.remove(&key_of(slice.as_ref()));
                Ok(())
            }
            other => other.map(drop),
        },
        Action::Delete(name, uid) => {
            writer.delete(&path(&name), Delete { uid: Some(&uid), ..Delete::default() }).await
        }
    }
}
