//! ClusterRoles that are made of others: `rules` are those of all roles that `aggregationRule` selects.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The identity of this controller.
pub const IDENTITY: &str = "clusterrole-aggregation-controller";
/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(2);

fn selects(selector: &LabelSelector, role: &ClusterRole) -> bool {
    let labels = role.labels();
    let equal = selector.match_labels.iter().flatten().all(|(k, v)| labels.get(k) == Some(v));
    let expressions = selector.match_expressions.iter().flatten().all(|e| {
        let value = labels.get(&e.key);
        let among = || value.is_some_and(|v| e.values.iter().flatten().any(|w| w == v));
        match e.operator.as_str() {
            "In" => among(),
            "NotIn" => !among(),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    equal && expressions
}

/// The rules that an aggregated role should have, where it has others.
fn wanted(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut others: Vec<&ClusterRole> = all
        .iter()
        .map(AsRef::as_ref)
        .filter(|other| other.metadata.name != role.metadata.name)
        .filter(|other| selectors.iter().any(|selector| selects(selector, other)))
        .collect();
    others.sort_by_key(|other| other.name_any());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in others.iter().flat_map(|other| other.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    let held = role.rules.as_deref().unwrap_or_default();
    let same = held.len() == rules.len() && rules.iter().all(|rule| held.contains(rule));
    (!same).then_some(rules)
}

/// Keeps aggregated roles up to date until `shutdown`.
pub async fn run(client: Client, shutdown: CancellationToken) {
    let roles: Api<ClusterRole> = Api::all(client);
    let (store, writer) = reflector::store();
    let changes = watcher(roles.clone(), watcher::Config::default()).default_backoff().reflect(writer);
    tokio::pin!(changes);
    let mut due: Option<tokio::time::Instant> = None;
    loop {
        let at = due.unwrap_or_else(|| tokio::time::Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = shutdown.cancelled() => return,
            change = changes.next() => match change {
                Some(Ok(watcher::Event::Init | watcher::Event::InitApply(_))) => {}
                Some(Ok(_)) => { due.get_or_insert(tokio::time::Instant::now() + GATHER); }
                Some(Err(error)) => tracing::debug!(%error, "watching ClusterRoles"),
                None => return,
            },
            () = tokio::time::sleep_until(at) => {
                due = None;
                if !sync(&roles, &store.state()).await {
                    due = Some(tokio::time::Instant::now() + RETRY);
                }
            }
        }
    }
}

async fn sync(roles: &Api<ClusterRole>, all: &[Arc<ClusterRole>]) -> bool {
    let mut well = true;
    for role in all {
        let Some(rules) = wanted(role, all) else { continue };
        let patch = json!({"metadata": {"resourceVersion": role.resource_version()}, "rules": rules});
        if let Err(error) =
            roles.patch(&role.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await
        {
            tracing::debug!(role = role.name_any(), %error, "aggregating");
            well = false;
        }
    }
    well
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_gathered() {
        let role = |value: serde_json::Value| Arc::new(serde_json::from_value::<ClusterRole>(value).unwrap());
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let all = [
            role(
                json!({"metadata": {"name": "all"}, "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}}),
            ),
            role(json!({"metadata": {"name": "one", "labels": {"a": "b"}}, "rules": [rule("get")]})),
            role(
                json!({"metadata": {"name": "two", "labels": {"a": "b"}}, "rules": [rule("get"), rule("list")]}),
            ),
            role(json!({"metadata": {"name": "not", "labels": {"a": "c"}}, "rules": [rule("delete")]})),
        ];
        let rules = wanted(&all[0], &all).unwrap();
        assert_eq!(rules.iter().map(|r| r.verbs.concat()).collect::<Vec<_>>(), ["get", "list"]);
        let mut whole = (*all[0]).clone();
        whole.rules = Some(rules);
        assert_eq!(wanted(&whole, &all), None);
        assert_eq!(wanted(&all[1], &all), None);
    }
}
