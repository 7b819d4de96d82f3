//! APIServices of the groups that this server serves itself, kept as these come and go.

use std::collections::{BTreeSet, HashSet};

use coracle_api::Status;
use coracle_apiserver::ApiServer;
use futures::future::try_join_all;
use http::Method;
use serde_json::{Value, json};

use crate::api_service::{GROUP, PLURAL};
use crate::bootstrap::call;
use crate::value::text;

const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Makes what is missing and removes what is no longer served.
pub async fn reconcile(server: &ApiServer, own: &HashSet<(String, String)>) -> Result<(), Status> {
    let objects = server.objects();
    let resources = objects.resources();
    let served: BTreeSet<(&str, &str)> =
        resources.iter().map(|def| (def.group.as_str(), def.version.as_str())).collect();
    let known = objects.list(GROUP, PLURAL, None).await?;
    let missing = served.iter().filter(|(group, version)| {
        let name = name(group, version);
        !known.iter().any(|service| text(service, "/metadata/name") == name)
    });
    let made = missing.map(|(group, version)| async move {
        let built_in = own.contains(&((*group).to_owned(), (*version).to_owned()));
        match call(server, Method::POST, PATH, Some(&local(group, version, built_in))).await {
            Err(status) if !status.is_already_exists() => Err(status),
            _ => Ok(()),
        }
    });
    try_join_all(made).await?;
    let label = format!("/metadata/labels/{}", MANAGED.replace('/', "~1"));
    for service in known.iter().filter(|s| text(s, &label) == "true") {
        if !served.contains(&(text(service, "/spec/group"), text(service, "/spec/version"))) {
            let path = format!("{PATH}/{}", text(service, "/metadata/name"));
            match call(server, Method::DELETE, &path, None).await {
                Err(status) if !status.is_not_found() => return Err(status),
                _ => {}
            }
        }
    }
    Ok(())
}

/// `v1.apps`; of the core group `v1.`.
fn name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

fn local(group: &str, version: &str, built_in: bool) -> Value {
    let (group_priority, version_priority) = match (built_in, group) {
        (true, "") => (18_000, 1),
        (true, _) => (17_000, 15),
        (false, _) => (1_000, 100),
    };
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": name(group, version), "labels": {MANAGED: if built_in { "onstart" } else { "true" }}},
        "spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": group_priority, "versionPriority": version_priority,
        },
    })
}
