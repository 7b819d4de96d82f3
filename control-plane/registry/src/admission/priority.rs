//! The number behind `priorityClassName`, and that there is one default class at most.

use coracle_api::meta::{self, GroupResource};
use coracle_api::status::Status;
use coracle_apiserver::{Admission, Attributes, Operation};
use serde_json::Value;

use crate::value::{flag, maybe_number, number, object, set, set_default, text};

const GROUP: &str = "scheduling.k8s.io";
const PLURAL: &str = "priorityclasses";

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
            keep(pod, old);
            return Ok(());
        }
        let forbidden = |why: String| {
            let name = attributes.request.name.as_deref().unwrap_or_default();
            Err(Status::forbidden(&GroupResource::new("", "pods"), name, why))
        };
        let wanted = text(pod, "/spec/priorityClassName").to_string();
        let class = match wanted.as_str() {
            "" => default_class(attributes, None).await?,
            name => {
                let found = attributes.objects.get(GROUP, PLURAL, None, name).await?;
                if found.is_none() {
                    return forbidden(format!("no PriorityClass with name {name} was found"));
                }
                found
            }
        };
        let value = class.as_ref().map_or(0, |c| number(c, "/value"));
        let policy = class.as_ref().map_or("", |c| text(c, "/preemptionPolicy"));
        let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
        if let Some(given) = maybe_number(pod, "/spec/priority").filter(|given| *given != value) {
            return forbidden(format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
            ));
        }
        let given = text(pod, "/spec/preemptionPolicy");
        if !given.is_empty() && given != policy {
            return forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            ));
        }
        if let Some(spec) = object(pod, "spec") {
            set(spec, "priority", value);
            set(spec, "preemptionPolicy", policy);
            if let Some(name) = class.as_ref().and_then(meta::name) {
                set(spec, "priorityClassName", name);
            }
        }
        Ok(())
    }

    async fn validate(&self, attributes: &Attributes<'_>, obj: Option<&Value>) -> Result<(), Status> {
        let cx = attributes.request;
        let about = cx.group == GROUP && cx.resource == PLURAL;
        let Some(class) = obj.filter(|c| about && flag(c, "/globalDefault")) else { return Ok(()) };
        let name = text(class, "/metadata/name");
        match default_class(attributes, Some(name)).await? {
            Some(other) => Err(Status::forbidden(
                &GroupResource::new(GROUP, PLURAL),
                name,
                format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    text(&other, "/metadata/name")
                ),
            )),
            None => Ok(()),
        }
    }
}

/// What admission chose at birth is kept when a client leaves it out.
fn keep(pod: &mut Value, old: &Value) {
    let Some(spec) = object(pod, "spec") else { return };
    for field in ["priority", "preemptionPolicy"] {
        if let Some(value) = old.pointer(&format!("/spec/{field}")) {
            set_default(spec, field, value.clone());
        }
    }
}

/// The class of pods that name none: the least of those that are marked, but for one.
async fn default_class(attributes: &Attributes<'_>, but: Option<&str>) -> Result<Option<Value>, Status> {
    let classes = attributes.objects.list(GROUP, PLURAL, None).await?;
    let marked = classes.into_iter().filter(|c| flag(c, "/globalDefault") && meta::name(c) != but);
    Ok(marked.min_by_key(|c| number(c, "/value")))
}
