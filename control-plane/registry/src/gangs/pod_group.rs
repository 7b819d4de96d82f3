//! PodGroup: pods that name it in `spec.schedulingGroup` are placed together.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_api::status::Status;
use coracle_apiserver::{Column, ResourceDef, Strategy, StrategyContext, Subresource};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{GROUP, VERSION};
use crate::value::{at, items, reset, text};
use crate::{check, table};

static COLUMNS: [Column; 4] = [
    table::NAME,
    table::string(
        "Policy",
        "How the pods of the group are placed; of a gang, how many must fit at the same time.",
    ),
    table::string("Scheduled", "Whether what the policy asks for has been reached."),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new(GROUP, VERSION, "PodGroup", "podgroups", Arc::new(PodGroup))
        .subresource(Subresource::status("PodGroup"))
}

struct PodGroup;

#[async_trait::async_trait]
impl Strategy for PodGroup {
    async fn prepare_for_create(&self, _cx: &StrategyContext<'_>, obj: &mut Value) -> Result<(), Status> {
        reset(obj, "status", json!({}));
        Ok(())
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (spec, path) = (at(obj, "/spec"), Path::new("spec"));
        super::policy(&mut errors, at(spec, "/schedulingPolicy"), &path.child("schedulingPolicy"));
        let reference = at(spec, "/podGroupTemplateRef");
        if !reference.is_null() {
            let path = path.child("podGroupTemplateRef");
            let workload = at(reference, "/workload");
            if workload.is_null() {
                errors.push(Error::invalid(&path, reference.clone(), "must specify one of: `workload`"));
            } else {
                let path = path.child("workload");
                let (name, template) =
                    (text(workload, "/workloadName"), text(workload, "/podGroupTemplateName"));
                check::words(&mut errors, &path.child("workloadName"), name, rules::dns1123_subdomain(name));
                let place = path.child("podGroupTemplateName");
                check::words(&mut errors, &place, template, rules::dns1123_label(template));
            }
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        check::immutable(&mut errors, &Path::new("spec"), at(new, "/spec"), at(old, "/spec"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        let mut conditions = items(obj, "/status/conditions").iter();
        let scheduled = conditions.rfind(|one| text(one, "/type") == "PodGroupScheduled");
        vec![
            table::name(obj),
            super::shown(at(obj, "/spec/schedulingPolicy")).into(),
            scheduled.map_or("", |one| text(one, "/status")).into(),
            table::age(obj, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_one_of_two_and_lasts() {
        let group =
            |policy: Value| json!({ "metadata": { "name": "g" }, "spec": { "schedulingPolicy": policy } });
        let wrong = |policy: Value| {
            PodGroup.validate_create(&group(policy)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(wrong(json!({ "basic": {} })), [""; 0]);
        assert_eq!(wrong(json!({ "gang": { "minCount": 3 } })), [""; 0]);
        assert!(wrong(json!({}))[0].contains("spec.schedulingPolicy"), "{:?}", wrong(json!({})));
        assert!(wrong(json!({ "basic": {}, "gang": { "minCount": 1 } }))[0].contains("exactly one of"));
        let none = wrong(json!({ "gang": { "minCount": 0 } }));
        assert!(none[0].contains("spec.schedulingPolicy.gang.minCount"), "{none:?}");
        let (three, four) =
            (group(json!({ "gang": { "minCount": 3 } })), group(json!({ "gang": { "minCount": 4 } })));
        assert!(PodGroup.validate_update(&four, &three)[0].to_string().contains("field is immutable"));
    }
}
