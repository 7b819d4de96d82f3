//! What the gateway reads of the cluster, and the one thing it writes: where it listens.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::watch_object;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch;

use crate::ADDRESS_ANNOTATION;
use crate::forward::State;
use crate::knative::KnativeIngress;
use crate::table::{Services, Table};

/// Between two tries to read or write.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the table as the cluster is. Services are watched once there is any Ingress or route. Never returns.
pub async fn follow(client: Client, state: Arc<State>) {
    let changes = watch::Sender::new(0_u64);
    let (ingresses, watch_ingresses) = watch_all::<Ingress>(&client, &changes);
    let (classes, watch_classes) = watch_all::<IngressClass>(&client, &changes);
    let (routes, watch_routes) = watch_all::<KnativeIngress>(&client, &changes);
    let (services, watch_services) = watch_all::<Service>(&client, &changes);
    let (slices, watch_slices) = watch_all::<EndpointSlice>(&client, &changes);
    let needed = async {
        let mut seen = changes.subscribe();
        while ingresses.is_empty() && routes.is_empty() {
            if seen.changed().await.is_err() {
                return;
            }
        }
        tokio::join!(watch_services, watch_slices);
    };
    let build = async {
        let mut seen = changes.subscribe();
        while seen.changed().await.is_ok() {
            let (services, slices) = (services.state(), slices.state());
            let services = Services::new(services.iter().map(Arc::as_ref), slices.iter().map(Arc::as_ref));
            let (ingresses, classes, routes) = (ingresses.state(), classes.state(), routes.state());
            state.replace(Table::new(
                ingresses.iter().map(Arc::as_ref),
                classes.iter().map(Arc::as_ref),
                routes.iter().map(Arc::as_ref),
                &services,
            ));
        }
    };
    tokio::join!(watch_ingresses, watch_classes, watch_routes, needed, build);
}

/// A cache of all objects of a kind and the work that keeps it.
fn watch_all<K>(
    client: &Client,
    changes: &watch::Sender<u64>,
) -> (Store<K>, impl Future<Output = ()> + use<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Hash + Eq,
{
    let (store, writer) = reflector::store();
    let (api, changes) = (Api::<K>::all(client.clone()), changes.clone());
    let work = async move {
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).reflect(writer));
        while let Some(event) = events.next().await {
            match event {
                // Objects of a first list count when the list is complete.
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Ok(_) => changes.send_modify(|count| *count += 1),
                Err(error) => {
                    tracing::debug!(%error, kind = %K::kind(&()), "the gateway cannot watch");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    };
    (store, work)
}

/// Keeps on the Node where its gateway listens, also on a Node that is made again.
pub async fn announce(client: &Client, node: &str, address: SocketAddr) {
    let nodes: Api<Node> = Api::all(client.clone());
    let address = address.to_string();
    let patch = json!({"metadata": {"annotations": {ADDRESS_ANNOTATION: address}}});
    let mut states = std::pin::pin!(watch_object(nodes.clone(), node).default_backoff());
    while let Some(state) = states.next().await {
        match state {
            Ok(Some(object)) if object.annotations().get(ADDRESS_ANNOTATION) != Some(&address) => {
                while let Err(error) = nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch)).await
                {
                    tracing::debug!(%error, node, "the gateway cannot tell its address yet");
                    tokio::time::sleep(RETRY).await;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, node, "the gateway cannot read its node"),
        }
    }
}
