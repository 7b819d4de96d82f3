//! The number behind `priorityClassName`. Only the two classes of the system exist so far; other pods have priority 0.

use coracle_api::meta::GroupResource;
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::value::{maybe_number, object, set, set_default, text};

const CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// The plugin.
pub struct Priority;

#[async_trait::async_trait]
impl Admission for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn admit(&self, attributes: &Attributes<'_>, obj: Option<&mut Value>) -> Result<(), Status> {
        let writes = matches!(attributes.operation, Operation::Create | Operation::Update);
        let Some(pod) = obj.filter(|_| writes && super::writes_pods(attributes)) else { return Ok(()) };
        if let Some(old) = attributes.old {
            // What admission chose at birth is kept when a client leaves it out.
            if let Some(spec) = object(pod, "spec") {
                for field in ["priority", "preemptionPolicy"] {
                    if let Some(value) = old.pointer(&format!("/spec/{field}")) {
                        set_default(spec, field, value.clone());
                    }
                }
            }
            return Ok(());
        }
        let forbidden = |why: String| {
            let name = attributes.request.name.as_deref().unwrap_or_default();
            Err(Status::forbidden(&GroupResource::new("", "pods"), name, why))
        };
        let class = text(pod, "/spec/priorityClassName");
        let value = match CLASSES.iter().find(|(name, _)| *name == class) {
            Some((_, value)) => *value,
            None if class.is_empty() => 0,
            None => return forbidden(format!("no PriorityClass with name {class} was found")),
        };
        if let Some(given) = maybe_number(pod, "/spec/priority")
            && given != value
        {
            return forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ));
        }
        if let Some(spec) = object(pod, "spec") {
            set(spec, "priority", value);
            set_default(spec, "preemptionPolicy", "PreemptLowerPriority");
        }
        Ok(())
    }
}
