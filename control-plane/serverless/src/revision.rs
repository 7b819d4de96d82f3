//! The loop of Revisions.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::PostParams;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use crate::controller::{Error, done, drive, failed, now};
use crate::ensure::{ensure, ensure_status};
use crate::plan::revision as plan;
use crate::types::{REVISION_LABEL, Revision};

/// Runs for ever.
pub async fn run(client: Client) {
    let ours = watcher::Config::default().labels(REVISION_LABEL);
    let controller = Controller::new(Api::<Revision>::all(client.clone()), watcher::Config::default())
        .owns(Api::<Deployment>::all(client.clone()), ours);
    drive("revision", controller.run(reconcile, failed, Arc::new(client))).await;
}

async fn reconcile(revision: Arc<Revision>, client: Arc<Client>) -> Result<Action, Error> {
    if revision.metadata.deletion_timestamp.is_some() {
        return Ok(done());
    }
    let namespace = revision.namespace().unwrap_or_default();
    let client = client.as_ref().clone();
    ensure(&Api::<Service>::namespaced(client.clone(), &namespace), &plan::service(&revision)).await?;
    // A revision never changes: what was made of it stays, and its size is the autoscaler's.
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    let name = plan::deployment_name(&revision.name_any());
    let deployment = match deployments.get_opt(&name).await? {
        Some(found) => found,
        None => deployments.create(&PostParams::default(), &plan::deployment(&revision)).await?,
    };
    let status = plan::status(&revision, &deployment, &now());
    let api = Api::<Revision>::namespaced(client, &namespace);
    ensure_status(&api, revision.as_ref(), revision.status.as_ref(), &status).await?;
    Ok(done())
}
