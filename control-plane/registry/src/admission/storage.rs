//! Claims that name no class get the default one, and volumes and claims in use stay until nobody uses them.

use coracle_api::meta;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::persistent_volume_claim::class;
use crate::storage::DEFAULT_CLASS;
use crate::value::{object, set, text};

/// Names the default StorageClass in claims that name none.
pub struct DefaultStorageClass;

#[async_trait::async_trait]
impl Admission for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(claim) = obj.filter(|_| super::creates(attributes, "", "persistentvolumeclaims")) else {
            return Ok(());
        };
        if class(claim).is_some() {
            return Ok(());
        }
        let classes = attributes.objects.list("storage.k8s.io", "storageclasses", None).await?;
        if let Some(name) = super::newest_default(&classes, DEFAULT_CLASS)
            && let Some(spec) = object(claim, "spec")
        {
            set(spec, "storageClassName", name);
        }
        Ok(())
    }
}

/// Puts a finalizer on volumes and claims; controllers take it away when nothing uses them any more.
pub struct StorageObjectInUseProtection;

#[async_trait::async_trait]
impl Admission for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(obj) = obj.filter(|_| attributes.operation == Operation::Create) else { return Ok(()) };
        for (plural, finalizer) in [
            ("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
            ("persistentvolumes", "kubernetes.io/pv-protection"),
        ] {
            if super::creates(attributes, "", plural) && !meta::finalizers(obj).any(|f| f == finalizer) {
                let mut all: Vec<String> = meta::finalizers(obj).map(str::to_owned).collect();
                all.push(finalizer.into());
                meta::set_finalizers(obj, all);
            }
        }
        Ok(())
    }
}

/// A claim may grow only where its class lets it.
pub struct PersistentVolumeClaimResize;

#[async_trait::async_trait]
impl Admission for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        use coracle_api::quantity::Quantity;
        let cx = attributes.request;
        let about =
            cx.group.is_empty() && cx.resource == "persistentvolumeclaims" && cx.subresource.is_none();
        let (Some(new), Some(old)) = (obj, attributes.old.filter(|_| about)) else { return Ok(()) };
        let size = |obj: &Value| Quantity::parse(text(obj, "/spec/resources/requests/storage")).ok();
        if size(new) <= size(old) {
            return Ok(());
        }
        let name = class(new).unwrap_or_default();
        let class = attributes.objects.get("storage.k8s.io", "storageclasses", None, name).await?;
        let grows = class.is_some_and(|c| crate::value::flag(&c, "/allowVolumeExpansion"));
        if text(old, "/status/phase") == "Bound" && grows {
            return Ok(());
        }
        let why = if grows {
            "Only bound persistent volume claims can be expanded"
        } else {
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize"
        };
        let gr = meta::GroupResource::new("", "persistentvolumeclaims");
        Err(Status::forbidden(&gr, text(new, "/metadata/name"), why))
    }
}
