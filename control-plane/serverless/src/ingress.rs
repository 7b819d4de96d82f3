//! Tells each Ingress that the gateways serve where it is reached.

use std::sync::Arc;

use coracle_gateway::table::is_ours;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::{
    Ingress, IngressClass, IngressLoadBalancerIngress, IngressLoadBalancerStatus, IngressPortStatus,
    IngressStatus,
};
use kube::api::ListParams;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use crate::controller::{Error, done, drive, failed};
use crate::ensure::ensure_status;
use crate::route::gateways;

/// Runs for ever.
pub async fn run(client: Client) {
    let config = watcher::Config::default();
    let controller = Controller::new(Api::<Ingress>::all(client.clone()), config.clone());
    let all = controller.store();
    let controller = controller.watches(Api::<Node>::all(client.clone()), config, move |_| {
        all.state().iter().map(|ingress| ObjectRef::from_obj(ingress.as_ref())).collect::<Vec<_>>()
    });
    drive("ingress", controller.run(reconcile, failed, Arc::new(client))).await;
}

async fn reconcile(ingress: Arc<Ingress>, client: Arc<Client>) -> Result<Action, Error> {
    let classes = Api::<IngressClass>::all(client.as_ref().clone()).list(&ListParams::default()).await?;
    if !is_ours(&ingress, &classes.iter().collect::<Vec<_>>()) {
        return Ok(done());
    }
    let mut reached: Vec<_> = gateways(&client)
        .await?
        .into_iter()
        .map(|gateway| IngressLoadBalancerIngress {
            ip: Some(gateway.ip().to_string()),
            ports: Some(vec![IngressPortStatus {
                port: gateway.port().into(),
                protocol: "TCP".into(),
                error: None,
            }]),
            hostname: None,
        })
        .collect();
    reached.sort_by(|a, b| a.ip.cmp(&b.ip));
    let status = IngressStatus { load_balancer: Some(IngressLoadBalancerStatus { ingress: Some(reached) }) };
    let api = Api::<Ingress>::namespaced(client.as_ref().clone(), &ingress.namespace().unwrap_or_default());
    ensure_status(&api, ingress.as_ref(), ingress.status.as_ref(), &status).await?;
    Ok(done())
}
