//! The loop of Services.

use std::sync::Arc;

use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use crate::controller::{Error, done, drive, failed, now};
use crate::ensure::{ensure, ensure_status};
use crate::plan::service as plan;
use crate::types::{Configuration, KnativeService, Route};

/// Runs for ever.
pub async fn run(client: Client) {
    let config = watcher::Config::default();
    let controller = Controller::new(Api::<KnativeService>::all(client.clone()), config.clone())
        .owns(Api::<Configuration>::all(client.clone()), config.clone())
        .owns(Api::<Route>::all(client.clone()), config);
    drive("service", controller.run(reconcile, failed, Arc::new(client))).await;
}

async fn reconcile(service: Arc<KnativeService>, client: Arc<Client>) -> Result<Action, Error> {
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(done());
    }
    let namespace = service.namespace().unwrap_or_default();
    let client = client.as_ref().clone();
    let configuration =
        ensure(&Api::namespaced(client.clone(), &namespace), &plan::configuration(&service)).await?;
    let route = ensure(&Api::namespaced(client.clone(), &namespace), &plan::route(&service)).await?;
    let status = plan::status(&service, &configuration, &route, &now());
    let api = Api::<KnativeService>::namespaced(client, &namespace);
    ensure_status(&api, service.as_ref(), service.status.as_ref(), &status).await?;
    Ok(done())
}
