//! Admission plugins that name kinds.

mod default_tolerations;
mod namespace_lifecycle;
mod priority;
mod service_account;

use std::sync::Arc;

use coracle_apiserver::Admission;

/// The chain, in the order in which it runs.
pub fn chain() -> Vec<Arc<dyn Admission>> {
    vec![
        Arc::new(namespace_lifecycle::NamespaceLifecycle),
        Arc::new(service_account::ServiceAccount),
        Arc::new(priority::Priority),
        Arc::new(default_tolerations::DefaultTolerationSeconds),
    ]
}

/// Whether a call writes pods themselves, not a subresource of them.
fn writes_pods(attributes: &coracle_apiserver::Attributes<'_>) -> bool {
    let cx = attributes.request;
    cx.group.is_empty() && cx.resource == "pods" && cx.subresource.is_none()
}
