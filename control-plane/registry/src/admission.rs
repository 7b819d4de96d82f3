//! Admission plugins that name kinds.

mod admission_policy;
mod default_tolerations;
mod ingress_class;
mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
mod owner_references;
mod pod_security;
mod priority;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage;
mod subject;
mod webhooks;

use std::sync::Arc;

use coracle_api::meta;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::admission_webhook::services::Services;
use crate::options::RegistryOptions;

/// The chain, in the order in which it runs.
pub fn chain(options: &RegistryOptions, services: &Arc<Services>) -> Vec<Arc<dyn Admission>> {
    let (not_ready, unreachable) = options.toleration_seconds;
    let webhooks = webhooks::Webhooks::new(services.clone());
    let mut chain: Vec<Arc<dyn Admission>> = vec![
        Arc::new(namespace_lifecycle::NamespaceLifecycle),
        Arc::new(limit_ranger::LimitRanger),
        Arc::new(node_restriction::NodeRestriction),
        Arc::new(service_account::ServiceAccount),
        Arc::new(pod_security::PodSecurity),
        Arc::new(priority::Priority),
        Arc::new(default_tolerations::DefaultTolerationSeconds { not_ready, unreachable }),
        Arc::new(storage::DefaultStorageClass),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(storage::PersistentVolumeClaimResize),
        Arc::new(runtime_class::RuntimeClass),
        Arc::new(ingress_class::DefaultIngressClass),
        Arc::new(admission_policy::MutatingAdmissionPolicy::default()),
        Arc::new(webhooks::Mutating::new(webhooks.clone())),
        Arc::new(admission_policy::ValidatingAdmissionPolicy::default()),
        Arc::new(webhooks::Validating::new(webhooks)),
        // Last, so that nothing is charged for what another plugin refuses.
        Arc::new(resource_quota::ResourceQuota),
    ];
    if options.enforce_owner_permissions {
        // It changes nothing and charges nothing, so it may come first.
        chain.insert(0, Arc::new(owner_references::OwnerReferencesPermissionEnforcement));
    }
    chain
}

/// Whether a call writes pods themselves, not a subresource of them.
fn writes_pods(attributes: &Attributes<'_>) -> bool {
    let cx = attributes.request;
    cx.group.is_empty() && cx.resource == "pods" && cx.subresource.is_none()
}

/// Whether a call creates objects of a resource.
fn creates(attributes: &Attributes<'_>, group: &str, plural: &str) -> bool {
    let cx = attributes.request;
    attributes.operation == Operation::Create
        && cx.group == group
        && cx.resource == plural
        && cx.subresource.is_none()
}

/// The name of the newest class that an annotation marks as the default; of those made at once the first by name.
fn newest_default<'a>(classes: &'a [Value], annotation: &str) -> Option<&'a str> {
    let marked = classes.iter().filter(|c| meta::annotation(c, annotation) == Some("true"));
    let newest = marked.max_by(|a, b| {
        let age = |c: &Value| meta::creation_timestamp(c).unwrap_or_default().to_owned();
        age(a).cmp(&age(b)).then_with(|| meta::name(b).cmp(&meta::name(a)))
    });
    newest.and_then(meta::name)
}
