//! PriorityClass of `scheduling.k8s.io`.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::value::{at, flag, number, same, set_default, text};
use crate::{check, table};

/// The classes that every cluster has.
pub const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];
/// The highest value that a user may choose.
const HIGHEST: i64 = 1_000_000_000;

static COLUMNS: [Column; 5] = [
    table::NAME,
    table::integer("Value", "The actual priority that pods receive when they have the name of this class."),
    Column::new("Global-Default", "boolean", "", "Whether pods without a class have this one.", 0),
    table::AGE,
    table::string("PreemptionPolicy", "Whether pods of this class preempt pods with lower priority."),
];

/// The resource.
pub fn resource() -> ResourceDef {
    let strategy = Arc::new(PriorityClass);
    ResourceDef::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", strategy)
        .cluster_scoped()
        .short_names(&["pc"])
}

struct PriorityClass;

impl Strategy for PriorityClass {
    fn default(&self, obj: &mut Value) {
        set_default(obj, "preemptionPolicy", "PreemptLowerPriority");
        set_default(obj, "value", 0);
    }

    fn has_status(&self) -> bool {
        false
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let (name, value) = (text(obj, "/metadata/name"), number(obj, "/value"));
        if name.starts_with("system-") {
            if !SYSTEM.iter().any(|(known, most, _)| *known == name && *most == value) {
                let path = Path::new("metadata").child("name");
                let words =
                    "priority class names with 'system-' prefix are reserved for system use only. error:";
                errors.push(Error::forbidden(
                    &path,
                    format!("{words} {name} is not a known system priority class"),
                ));
            }
        } else if value > HIGHEST {
            let words = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.push(Error::forbidden(&Path::new("value"), words));
        }
        let policy = text(obj, "/preemptionPolicy");
        if !matches!(policy, "PreemptLowerPriority" | "Never") {
            let supported = ["PreemptLowerPriority", "Never"];
            errors.push(Error::not_supported(&Path::new("preemptionPolicy"), policy, &supported));
        }
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        if !same(at(new, "/value"), at(old, "/value")) {
            errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
        }
        let pointer = "/preemptionPolicy";
        check::immutable(&mut errors, &Path::new("preemptionPolicy"), at(new, pointer), at(old, pointer));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            table::name(obj),
            number(obj, "/value").into(),
            flag(obj, "/globalDefault").into(),
            table::age(obj, now),
            text(obj, "/preemptionPolicy").into(),
        ]
    }
}
