//! Every pod runs as a service account, by default as `default`, which must exist. Tokens are not mounted: there are none yet.

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::value::{items, object, present, set, text};

/// The plugin.
pub struct ServiceAccount;

#[async_trait::async_trait]
impl Admission for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(pod) = obj else { return Ok(()) };
        if attributes.operation != Operation::Create || !super::writes_pods(attributes) {
            return Ok(());
        }
        // A pod that mirrors a static one runs as nobody.
        if present(pod, "/metadata/annotations/kubernetes.io~1config.mirror") {
            return Ok(());
        }
        let wanted = match text(pod, "/spec/serviceAccountName") {
            "" => "default".to_string(),
            name => name.to_string(),
        };
        let namespace = attributes.request.namespace.as_deref();
        let found = attributes.objects.get("", "serviceaccounts", namespace, &wanted).await?;
        let Some(account) = found else {
            let place = namespace.unwrap_or_default();
            let why = format!(
                "error looking up service account {place}/{wanted}: serviceaccount {wanted:?} not found"
            );
            let pods = GroupResource::new("", "pods");
            return Err(Status::forbidden(
                &pods,
                attributes.request.name.as_deref().unwrap_or_default(),
                why,
            ));
        };
        if let Some(spec) = object(pod, "spec") {
            set(spec, "serviceAccountName", wanted.as_str());
            set(spec, "serviceAccount", wanted);
            let secrets = items(&account, "/imagePullSecrets");
            if items(spec, "/imagePullSecrets").is_empty() && !secrets.is_empty() {
                set(spec, "imagePullSecrets", secrets.to_vec());
            }
        }
        Ok(())
    }
}
