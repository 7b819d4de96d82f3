//! The loop of Routes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use coracle_gateway::ADDRESS_ANNOTATION;
use coracle_gateway::knative::KnativeIngress;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use crate::Options;
use crate::controller::{Error, done, drive, failed, now};
use crate::ensure::{ensure, ensure_status};
use crate::plan::route::{self as plan, Domains};
use crate::types::{Configuration, Revision, Route};

struct Context {
    client: Client,
    domains: Domains,
}

/// Runs for ever.
pub async fn run(options: Options) {
    let client = options.client;
    let config = watcher::Config::default();
    let controller = Controller::new(Api::<Route>::all(client.clone()), config.clone());
    let routes = controller.store();
    let following = controller.store();
    let controller = controller
        .owns(Api::<KnativeIngress>::all(client.clone()), config.clone())
        .watches(Api::<Configuration>::all(client.clone()), config.clone(), move |configuration| {
            let (namespace, name) = (configuration.namespace(), Some(configuration.name_any()));
            let follows = |route: &Route| {
                route.namespace() == namespace
                    && route.spec.traffic.iter().any(|share| share.configuration_name == name)
            };
            let all = following.state();
            all.iter()
                .filter(|route| follows(route))
                .map(|route| ObjectRef::from_obj(route.as_ref()))
                .collect::<Vec<_>>()
        })
        .watches(Api::<Node>::all(client.clone()), config, move |_| {
            routes.state().iter().map(|route| ObjectRef::from_obj(route.as_ref())).collect::<Vec<_>>()
        });
    let domains = Domains { outside: options.domain, cluster: options.cluster_domain };
    drive("route", controller.run(reconcile, failed, Arc::new(Context { client, domains }))).await;
}

/// Where the gateways of all nodes listen.
pub async fn gateways(client: &Client) -> kube::Result<Vec<SocketAddr>> {
    let nodes: Api<Node> = Api::all(client.clone());
    let nodes = nodes.list(&ListParams::default()).await?;
    let told = nodes.iter().filter_map(|node| node.annotations().get(ADDRESS_ANNOTATION)?.parse().ok());
    Ok(told.collect())
}

async fn reconcile(route: Arc<Route>, context: Arc<Context>) -> Result<Action, Error> {
    if route.metadata.deletion_timestamp.is_some() {
        return Ok(done());
    }
    let namespace = route.namespace().unwrap_or_default();
    let client = &context.client;
    let configurations: Api<Configuration> = Api::namespaced(client.clone(), &namespace);
    let revisions: Api<Revision> = Api::namespaced(client.clone(), &namespace);
    let mut latest = HashMap::new();
    for configuration in configurations.list(&ListParams::default()).await? {
        let ready =
            configuration.status.as_ref().and_then(|status| status.latest_ready_revision_name.clone());
        latest.insert(configuration.name_any(), ready);
    }
    let named: Vec<_> =
        revisions.list_metadata(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect();
    let resolved = plan::resolve(&route, &latest, |name| named.iter().any(|revision| revision == name));
    if let Ok(shares) = &resolved {
        let ingress = plan::ingress(&route, shares, &context.domains);
        ensure(&Api::<KnativeIngress>::namespaced(client.clone(), &namespace), &ingress).await?;
    }
    ensure(&Api::<Service>::namespaced(client.clone(), &namespace), &plan::service(&route)).await?;
    for slice in plan::slices(&route, &gateways(client).await?) {
        ensure(&Api::<EndpointSlice>::namespaced(client.clone(), &namespace), &slice).await?;
    }
    let status = plan::status(&route, &resolved, &context.domains, &now());
    let api = Api::<Route>::namespaced(client.clone(), &namespace);
    ensure_status(&api, route.as_ref(), route.status.as_ref(), &status).await?;
    Ok(done())
}
