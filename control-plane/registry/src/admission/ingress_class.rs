//! Ingresses that name no class get the default one.

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes};
use serde_json::Value;

use crate::networking::{CLASS_ANNOTATION, DEFAULT_CLASS};
use crate::value::{object, present, set};

/// The plugin.
pub struct DefaultIngressClass;

#[async_trait::async_trait]
impl Admission for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(ingress) = obj.filter(|_| super::creates(attributes, "networking.k8s.io", "ingresses"))
        else {
            return Ok(());
        };
        let named = present(ingress, "/spec/ingressClassName")
            || meta::annotation(ingress, CLASS_ANNOTATION).is_some();
        if named {
            return Ok(());
        }
        let classes = attributes.objects.list("networking.k8s.io", "ingressclasses", None).await?;
        if let Some(name) = super::newest_default(&classes, DEFAULT_CLASS)
            && let Some(spec) = object(ingress, "spec")
        {
            set(spec, "ingressClassName", name);
        }
        Ok(())
    }
}
