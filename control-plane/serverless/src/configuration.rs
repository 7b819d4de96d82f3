//! The loop of Configurations.

use std::sync::Arc;

use kube::api::{ListParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};

use crate::controller::{Error, done, drive, failed, now};
use crate::ensure::ensure_status;
use crate::plan::configuration as plan;
use crate::types::{CONFIGURATION_LABEL, Configuration, Revision};

/// Runs for ever.
pub async fn run(client: Client) {
    let config = watcher::Config::default();
    let controller = Controller::new(Api::<Configuration>::all(client.clone()), config.clone())
        .owns(Api::<Revision>::all(client.clone()), config);
    drive("configuration", controller.run(reconcile, failed, Arc::new(client))).await;
}

async fn reconcile(configuration: Arc<Configuration>, client: Arc<Client>) -> Result<Action, Error> {
    if configuration.metadata.deletion_timestamp.is_some() {
        return Ok(done());
    }
    let namespace = configuration.namespace().unwrap_or_default();
    let revisions: Api<Revision> = Api::namespaced(client.as_ref().clone(), &namespace);
    let ours = format!("{CONFIGURATION_LABEL}={}", configuration.name_any());
    let mut all = revisions.list(&ListParams::default().labels(&ours)).await?.items;
    let wanted = plan::revision(&configuration);
    let latest = match all.iter().find(|revision| revision.name_any() == wanted.name_any()) {
        Some(found) => found.clone(),
        None => {
            let created = revisions.create(&PostParams::default(), &wanted).await?;
            all.push(created.clone());
            created
        }
    };
    let status = plan::status(&configuration, &latest, &all, &now());
    let api = Api::<Configuration>::namespaced(client.as_ref().clone(), &namespace);
    ensure_status(&api, configuration.as_ref(), configuration.status.as_ref(), &status).await?;
    Ok(done())
}
