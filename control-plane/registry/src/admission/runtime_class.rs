//! The class that a pod names must exist; what it costs and where it runs becomes part of the pod.

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::value::{at, entries, items, list, object, present, same, set, text};

/// The plugin.
pub struct RuntimeClass;

#[async_trait::async_trait]
impl Admission for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let Some(pod) = obj else { return Ok(()) };
        if attributes.operation != Operation::Create || !super::writes_pods(attributes) {
            return Ok(());
        }
        let pods = GroupResource::new("", "pods");
        let name = attributes.request.name.clone().unwrap_or_default();
        let forbidden = |why: String| Err(Status::forbidden(&pods, &name, why));
        let wanted = text(pod, "/spec/runtimeClassName").to_string();
        if wanted.is_empty() {
            return match present(pod, "/spec/overhead") {
                true => forbidden(
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"
                        .into(),
                ),
                false => Ok(()),
            };
        }
        let found = attributes.objects.get("node.k8s.io", "runtimeclasses", None, &wanted).await?;
        let Some(class) = found else {
            return forbidden(format!("pod rejected: RuntimeClass {wanted:?} not found"));
        };
        let Some(spec) = object(pod, "spec") else { return Ok(()) };
        let overhead = at(&class, "/overhead/podFixed");
        if present(spec, "/overhead") && !same(at(spec, "/overhead"), overhead) {
            return forbidden(
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".into(),
            );
        }
        if overhead.is_object() {
            set(spec, "overhead", overhead.clone());
        }
        for (key, value) in entries(&class, "/scheduling/nodeSelector") {
            let Some(selector) = object(spec, "nodeSelector") else { continue };
            match selector.get(key) {
                Some(given) if given != value => {
                    return forbidden("conflict: runtimeClass.scheduling.nodeSelector and pod.spec.nodeSelector have conflicting values".into());
                }
                _ => set(selector, key, value.clone()),
            }
        }
        let tolerations = items(&class, "/scheduling/tolerations");
        if !tolerations.is_empty()
            && let Some(own) = list(spec, "tolerations")
        {
            own.extend(tolerations.iter().filter(|t| !own.contains(t)).cloned().collect::<Vec<_>>());
        }
        Ok(())
    }
}
