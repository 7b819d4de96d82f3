//! Nothing is created in a namespace that is missing or on its way out, and the system's namespaces stay.

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::namespace::SYSTEM;
use crate::value::present;

/// The plugin.
pub struct NamespaceLifecycle;

#[async_trait::async_trait]
impl Admission for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    async fn admit(&self, attributes: &Attributes<'_>, _obj: Option<&mut Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let namespaces = GroupResource::new("", "namespaces");
        if cx.group.is_empty() && cx.resource == "namespaces" {
            let name = cx.name.as_deref().unwrap_or_default();
            if attributes.operation == Operation::Delete && SYSTEM.contains(&name) {
                return Err(Status::forbidden(&namespaces, name, "this namespace may not be deleted"));
            }
            return Ok(());
        }
        let Some(namespace) = cx.namespace.as_deref() else { return Ok(()) };
        if attributes.operation != Operation::Create {
            return Ok(());
        }
        match attributes.objects.get("", "namespaces", None, namespace).await? {
            None => Err(Status::not_found(&namespaces, namespace)),
            // A bound pod may still be evicted, a token still be asked for.
            Some(_) if cx.subresource.is_some() => Ok(()),
            Some(found) if present(&found, "/metadata/deletionTimestamp") => {
                let why = format!(
                    "unable to create new content in namespace {namespace} because it is being terminated"
                );
                let gr = GroupResource::new(cx.group.as_str(), cx.resource.as_str());
                let status = Status::forbidden(&gr, cx.name.as_deref().unwrap_or_default(), why);
                let message = format!("namespace {namespace} is being terminated");
                Err(status.with_cause("NamespaceTerminating", message, "metadata.namespace"))
            }
            Some(_) => Ok(()),
        }
    }
}
