//! RuntimeClass of `node.k8s.io`: which runtime runs a pod.

use std::sync::Arc;

use coracle_api::field::{Error, Path};
use coracle_api::meta::validation as rules;
use coracle_apiserver::{Column, ResourceDef, Strategy};
use jiff::Timestamp;
use serde_json::Value;

use crate::pod::validation;
use crate::value::{at, entries, items, text};
use crate::{check, table};

static COLUMNS: [Column; 3] = [
    table::NAME,
    table::string(
        "Handler",
        "The underlying runtime and configuration that the CRI implementation will use.",
    ),
    table::AGE,
];

/// The resource.
pub fn resource() -> ResourceDef {
    ResourceDef::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses", Arc::new(RuntimeClass))
        .cluster_scoped()
}

struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn has_status(&self) -> bool {
        false
    }

    fn validate_create(&self, obj: &Value) -> Vec<Error> {
        let mut errors = Vec::new();
        let handler = text(obj, "/handler");
        check::words(&mut errors, &Path::new("handler"), handler, rules::dns1123_label(handler));
        let fixed = Path::new("overhead").child("podFixed");
        validation::amounts(&mut errors, at(obj, "/overhead/podFixed"), &fixed);
        let scheduling = Path::new("scheduling");
        for (key, value) in entries(obj, "/scheduling/nodeSelector") {
            let path = scheduling.child("nodeSelector");
            check::words(&mut errors, &path, key, rules::label_key(key));
            let value = value.as_str().unwrap_or_default();
            check::words(&mut errors, &path, value, rules::label_value(value));
        }
        let path = scheduling.child("tolerations");
        validation::tolerations(&mut errors, &path, items(obj, "/scheduling/tolerations"));
        errors
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<Error> {
        let mut errors = self.validate_create(new);
        check::immutable(&mut errors, &Path::new("handler"), at(new, "/handler"), at(old, "/handler"));
        errors
    }

    fn columns(&self) -> &[Column] {
        &COLUMNS
    }

    fn row(&self, obj: &Value, now: Timestamp) -> Vec<Value> {
        vec![table::name(obj), text(obj, "/handler").into(), table::age(obj, now)]
    }
}
